"""The parametrized suites: what `pytest` collects in a checkout, and `pytest --pyargs compat.suites` anywhere."""
