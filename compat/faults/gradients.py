"""Faults of class: gradients."""

from __future__ import annotations
