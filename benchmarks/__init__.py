"""Measurements, also of other programs. Nothing imports this package, and the wheel leaves it out."""
