"""What answers people and programs: the local chat and the server, over an exported model.

Of `export` only its runtime is imported, and never torch.
"""
