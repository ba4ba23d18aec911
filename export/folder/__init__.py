"""Writes the files of an exported folder besides the graph, and resumes an interrupted export."""
