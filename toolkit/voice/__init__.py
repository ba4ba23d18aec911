"""Keeps a model's own chat template when the model learns to reason: what it is, what is added, the files of it.

It imports the ground and `toolkit.formats`; nothing here computes with tensors.
"""
