"""The applications that answer people and programs: the local chat and the server, over an exported model.

They import neither torch nor any part of `export` but its runtime.
"""
