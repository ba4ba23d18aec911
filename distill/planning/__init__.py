"""Says before a training run what it takes: memory by part, tokens a second, hours, cost."""
