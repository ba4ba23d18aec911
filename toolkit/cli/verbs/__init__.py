"""One file for each command, or for two that belong together: its options, then the function that runs it.

A stage is imported inside its command, so that `toolkit --help` and the light chat load nothing heavy.
"""
