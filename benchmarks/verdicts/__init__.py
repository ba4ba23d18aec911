"""Measures accuracy and speed of verdicts; `python -m benchmarks.verdicts` writes the tables of
docs/explanation/verdicts.md."""
