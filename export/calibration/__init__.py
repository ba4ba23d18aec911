"""Calibrates on real text: the texts, hidden states, rounding on them, the steps of the cache."""
