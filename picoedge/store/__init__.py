"""Readers of GGUF files and Hugging Face folders, and the pack that every board uses."""
