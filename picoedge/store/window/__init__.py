"""Weights resident or streamed through a window."""
