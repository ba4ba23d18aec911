"""What the project adds to transformers' model classes: decoding, latent caches, the balance of experts. Needs
torch."""
