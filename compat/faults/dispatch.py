"""Faults of class: dispatch."""

from __future__ import annotations
