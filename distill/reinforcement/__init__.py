"""Reinforcement: group-relative policy optimization, judges of what no program verifies, signs of reflection."""
