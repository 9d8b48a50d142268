"""Inspection of image and embedding folders: problems, statistics and distributions."""
