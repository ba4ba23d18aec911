"""Reads what a text means as an answer: numbers, words, choices, dates and their parts."""
