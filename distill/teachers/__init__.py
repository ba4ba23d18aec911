"""Teachers that answer problems, here or behind a server, and the traces that they produce."""
