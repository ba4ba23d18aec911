"""Other programs on the same weights."""
