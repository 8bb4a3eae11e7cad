"""State of a run of training: weights and moments, as one vector each, and checkpoints."""
