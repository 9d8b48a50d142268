"""Command-line commands that take paths and options instead of a recipe (a YAML file with settings)."""
