"""Reads mathematics into a tree of the whole text, evaluates it exactly, and decides when two pieces mean the same."""
