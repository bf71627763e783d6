"""Faults of class: generation."""

from __future__ import annotations
