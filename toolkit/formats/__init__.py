"""Turns conversations into a model's tokens and back: chat templates, special tokens, the form of a thought.

It imports the ground and `toolkit.machine`; nothing here computes with tensors.
"""
