"""Commands that operate on a prior without reading a recipe."""
