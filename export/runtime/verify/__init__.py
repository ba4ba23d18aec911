"""`toolkit verify`: checks that a folder is what was exported, and gives the same outputs on this machine."""
