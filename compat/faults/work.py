"""Faults of class: work."""

from __future__ import annotations
