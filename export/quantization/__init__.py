"""Turns floats into codes of few bits: layouts, rounding, search, error feedback."""
