"""Architectures that our graph does not write: optimum exports them elsewhere, and its graph is turned into ours."""
