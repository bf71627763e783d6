"""Faults of class: precision."""

from __future__ import annotations
