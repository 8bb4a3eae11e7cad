"""Proposers of configurations: the lowest rank, a voter that notices a failure, the owner."""
