"""Conversations: their turns, what the model is sent of them, the disk, files to exchange. Knows nothing of the
page."""
