"""Commands of a prior that need no recipe."""
