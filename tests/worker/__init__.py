"""Tests of compat.worker in this process: the only ones that import torch."""
