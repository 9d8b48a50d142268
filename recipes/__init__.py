"""Recipes that come with priorkit, the small CLIP of the demo, and the images it was trained on."""
