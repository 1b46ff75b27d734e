"""One decoder for every family, the families as configs, and their checkpoints."""
