"""Judges programs: finds them in an answer, runs them confined, checks their unit tests."""
