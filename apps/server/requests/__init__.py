"""Reads and checks completion requests: the body, its fields, its JSON schema."""
