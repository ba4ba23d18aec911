"""How right verdicts are, and how fast: `python -m benchmarks.verdicts` writes the table of
docs/explanation/verdicts.md."""
