"""Faults of class: determinism."""

from __future__ import annotations
