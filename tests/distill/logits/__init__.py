"""Tests of distillation by logits."""
