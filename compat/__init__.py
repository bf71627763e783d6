"""compat: which model x dtype x attention x quantization combinations work here, with evidence."""

__version__ = "0.1.0"
