"""Chooses what a student learns from: why each trace is dropped, and which of the others are kept."""
