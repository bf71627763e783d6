"""Makes compat's plugin known in a checkout whose environment does not have the package installed."""

pytest_plugins = ["compat.plugin", "pytester"]
