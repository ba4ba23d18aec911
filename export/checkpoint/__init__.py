"""Reads checkpoints as their own libraries do: tensors, shards, links, adapters."""
