"""How conversations become a model's tokens: chat templates, special tokens, the form of a thought.

Imports the ground and `toolkit.machine`; nothing here computes with tensors.
"""
