"""Faults of class: scores."""

from __future__ import annotations
