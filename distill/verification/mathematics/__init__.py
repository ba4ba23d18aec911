"""What a piece of mathematics says and is worth: text, a tree of the whole text, exact values, and when two mean the
same."""
