"""Conversations on this board's disk."""
