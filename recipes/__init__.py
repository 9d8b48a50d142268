"""Recipes that come with priorkit, the code that reads and runs a recipe, and the demo with its small CLIP."""
