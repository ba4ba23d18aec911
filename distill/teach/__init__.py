"""The built-in teacher, made in DeepSeek-R1's stages: its corpus, recipe, stages, table and card."""
