"""The child process: the only part of compat that imports torch and transformers.

It runs inside the stack under test, so it needs nothing but the standard library and that stack. It reports facts and
measurements; it never decides an outcome (that is `compat.judge`, in the parent).
"""
