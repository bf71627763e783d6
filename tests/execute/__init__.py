"""Tests of compat.execute, with real worker processes and a stack made faulty from outside."""
