"""Commands that operate on a prior and need no recipe."""
