"""What is asked of a clock and what its samples say: settings, rounds, statistics, figures, export. Pure."""
