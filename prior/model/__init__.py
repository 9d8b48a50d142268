"""A prior as an object that samples, its configuration, and its folder."""
