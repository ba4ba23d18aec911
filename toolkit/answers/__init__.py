"""Finds the final answer in a text, and the number or word that it states."""
