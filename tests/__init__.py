"""Tests of compat itself; they mirror its modules."""
