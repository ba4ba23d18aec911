"""Provides problems: procedural families, a user's own files, requests to answer or refuse."""
