"""Distillation by logits: a student learns a teacher's distribution over tokens, not only the tokens it drew."""
