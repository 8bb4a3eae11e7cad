"""Data of training: text as people have it, its tokens, and the order in which they are read."""
