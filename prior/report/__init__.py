"""The HTML report of a prior."""
