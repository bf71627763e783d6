"""Faults of class: loading."""

from __future__ import annotations
