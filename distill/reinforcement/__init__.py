"""Reinforcement: group-relative policy optimization, judges for what no program can verify, signs of reflection."""
