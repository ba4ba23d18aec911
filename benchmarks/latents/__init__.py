"""Measures latent attention's cache: cost and accuracy."""
