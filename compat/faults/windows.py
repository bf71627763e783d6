"""Faults of class: windows."""

from __future__ import annotations
