"""What latent attention's cache costs and keeps."""
