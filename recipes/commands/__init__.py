"""Commands that read a recipe, one file each."""
