"""Inspection of image and embedding folders: problems, statistics and value distributions."""
