"""Conversations: their turns, what the model is sent, the thread that writes, the disk, files to exchange.

Nothing here knows the page.
"""
