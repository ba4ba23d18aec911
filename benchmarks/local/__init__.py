"""Teachers on this machine, measured."""
