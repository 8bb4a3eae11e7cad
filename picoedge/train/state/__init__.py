"""What a run of training holds: weights and moments, as one vector each, and checkpoints."""
