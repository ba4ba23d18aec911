"""What the project adds to transformers' model classes: decoding, latent caches, expert balancing."""
