"""How fast training, reinforcement and the mixture of experts are, beside what others offer."""
