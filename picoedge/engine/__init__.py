"""One board: a pack opened, its memory planned, a conversation."""
