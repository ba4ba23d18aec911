"""Verdicts on programs: finding them in an answer, running them confined, their unit tests."""
