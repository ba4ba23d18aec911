"""Measures the speed of training, reinforcement and the mixture of experts, compared with other programs."""
