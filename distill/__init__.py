"""From problems to a trained student: curation and the pipeline over the rooms below."""
