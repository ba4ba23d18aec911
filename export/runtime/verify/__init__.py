"""`toolkit verify`: whether a folder is what was exported, and says here what it said there."""
