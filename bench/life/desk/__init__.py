"""Who sits at a board: what is typed, and what is seen."""
