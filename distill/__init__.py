"""Distils a student from problems: the pipeline and curation, over the rooms below."""
