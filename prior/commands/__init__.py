"""Commands that use a prior and need no recipe."""
