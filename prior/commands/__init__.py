"""Commands that take paths and options instead of a recipe."""
