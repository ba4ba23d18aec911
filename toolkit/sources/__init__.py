"""Where models come from: folders, GGUF files, known names, the hub.

Imports the ground, `toolkit.machine` and `toolkit.formats`.
"""
