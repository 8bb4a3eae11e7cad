"""A pack as files of other programs: Hugging Face folders and GGUF files."""
