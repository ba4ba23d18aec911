"""From problems to a trained student: teachers, traces, verdicts, curation, training, evaluation."""
