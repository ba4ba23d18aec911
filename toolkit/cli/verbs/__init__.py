"""A file a command, or two that belong together: what a person can type, above what it does.

A stage is imported inside its command, so that `toolkit --help` and the light chat load nothing heavy.
"""
