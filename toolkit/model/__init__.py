"""Adds decoding, latent caches and the balance of experts to transformers' model classes. It needs torch."""
