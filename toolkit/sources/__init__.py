"""Finds models: in folders, in GGUF files, by known names, on the hub.

It imports the ground, `toolkit.machine` and `toolkit.formats`.
"""
