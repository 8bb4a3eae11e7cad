"""Tokenizer files of a pack, from a source."""
