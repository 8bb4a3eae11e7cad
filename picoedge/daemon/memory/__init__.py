"""The memory of a board: who has how much of it, and the slice of the board's own sessions."""
