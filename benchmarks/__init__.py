"""Measurements, beside rivals too. Nobody imports this package, and the wheel leaves it out."""
