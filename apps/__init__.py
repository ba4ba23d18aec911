"""What a person sees: the local chat."""
