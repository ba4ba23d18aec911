"""Recipes of distillation as YAML files: shipped ones with the source of each value, and a user's own."""
