"""The servers of a teacher: how many requests each gets at once, which gets the next, what fields it takes."""
