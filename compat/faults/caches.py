"""Faults of class: caches."""

from __future__ import annotations
