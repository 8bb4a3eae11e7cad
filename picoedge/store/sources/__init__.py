"""Readers of model files as others publish them."""
