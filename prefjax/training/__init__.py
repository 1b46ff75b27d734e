"""Training: state, steps, checkpoints, metrics and the run's folder."""
