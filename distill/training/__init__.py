"""Training of the student: batches, losses, optimizers, checkpoints and the journal. Needs torch."""
