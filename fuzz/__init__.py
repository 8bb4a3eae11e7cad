"""Fuzzers: mutated files and messages for every parser. `python -m fuzz` runs them."""
