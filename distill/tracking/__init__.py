"""Where a training run's figures go besides its own loss curve: TensorBoard, Trackio, Weights & Biases."""
