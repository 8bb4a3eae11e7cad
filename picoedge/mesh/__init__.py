"""Boards of one cluster: who they are, who is let in, and what passes between them."""
