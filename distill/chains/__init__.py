"""Chains of thought that a program writes for each family: what the teacher's cold start learns from."""
