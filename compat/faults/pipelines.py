"""Faults of class: pipelines."""

from __future__ import annotations
