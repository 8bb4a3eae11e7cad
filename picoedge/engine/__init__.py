"""Prompt to tokens: the model shelf, the catalogue it is filled from, and sessions."""
