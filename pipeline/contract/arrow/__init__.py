"""Arrow types and columns that tables of other tools may have, and functions to read them."""
