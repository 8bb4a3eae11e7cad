"""GGUF files to try on their readers."""
