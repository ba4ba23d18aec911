"""Starts the chat: a page on the loopback address, a window for it, a model here or behind an endpoint."""
