"""Commands that read a recipe."""
