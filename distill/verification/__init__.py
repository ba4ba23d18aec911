"""Whether an answer is right: mathematics, text and code, each by its own judge."""
