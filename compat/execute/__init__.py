"""Running a plan: worker processes, timeouts, memory limits, signals. Knows nothing of outcomes but how a worker
ended."""
