"""What a model must be to become a student: its architecture, and a template that is proven to say the same everywhere.

It imports `toolkit` alone; the proof needs transformers.
"""
