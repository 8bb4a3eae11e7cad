"""The memory of a board: the claims on it, and the slice of the board's own sessions."""
