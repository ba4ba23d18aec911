"""Measures models on the same held-out problems: one as a row of the ledger, several in comparison."""
