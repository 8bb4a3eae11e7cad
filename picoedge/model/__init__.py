"""The forward pass and the samplers: one slice of a model, no network, no files."""
