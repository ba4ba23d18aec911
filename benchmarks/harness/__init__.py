"""lm-evaluation-harness against `toolkit serve`, with tasks whose data lie in a file here."""
