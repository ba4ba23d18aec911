"""Generates text: the decode loop with its sampling and drafts, and the client of an endpoint.

It imports the ground and `toolkit.formats`; decoders are handed in.
"""
