"""Measures exports: memory, time, speed and quality."""
