"""Faults of class: positions."""

from __future__ import annotations
