"""Faults of class: heads."""

from __future__ import annotations
