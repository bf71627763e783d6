"""Runs beside runs and expectations: diff, gate, expectations, baselines, shards put together, histories. Pure."""
