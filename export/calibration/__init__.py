"""What real text shows of a model: texts, hidden states, the range of the cache."""
