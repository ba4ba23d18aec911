"""Decides whether answers are right: mathematics, text and code, each by its own rules."""
