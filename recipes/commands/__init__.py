"""Commands that read a recipe, one per module."""
