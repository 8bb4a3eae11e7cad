"""Ranks that sum together."""
