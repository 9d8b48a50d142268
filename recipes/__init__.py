"""Recipes included in priorkit, the code that loads and runs them, and the demo with its small CLIP model."""
