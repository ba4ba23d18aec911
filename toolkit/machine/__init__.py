"""Knows this machine: its processor, memory and folders, and what its kernel can be told. It imports the ground and
`toolkit.figures`."""
