"""Measures the store of traces at size; `python -m benchmarks.store` writes the table of docs/explanation/traces.md."""
