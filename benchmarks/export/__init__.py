"""What exports cost and keep: memory, time, speed, quality."""
