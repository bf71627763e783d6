"""Faults of class: quantization."""

from __future__ import annotations
