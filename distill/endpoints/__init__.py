"""Models behind OpenAI-compatible servers: what is sent to them, how fast, and how their answers are read."""
