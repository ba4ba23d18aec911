"""Chains of thought that a program writes, for each family: `distill.problems.families.CHAINS`."""
