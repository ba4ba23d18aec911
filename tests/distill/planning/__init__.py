"""What `toolkit plan` says."""
