"""Where text comes from: the decode loop with its sampling and drafts, and the client of an endpoint.

Imports the ground and `toolkit.formats`; what decodes is handed in.
"""
