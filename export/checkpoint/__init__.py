"""Checkpoints as their own libraries read them: tensors, shards, links, adapters."""
