"""Shards from many boards at once."""
