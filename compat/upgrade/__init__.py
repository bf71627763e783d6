"""Two stacks on the same weights, asked the same: what an upgrade changes, and which package and version did it."""
