"""The person at a board: words typed, and words seen."""
