"""Arrow types and columns that tables of other tools may have, and how they are read."""
