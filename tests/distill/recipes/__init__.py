"""Recipes: files, their checks, the shipped ones."""
