"""The pack: written, checked, read."""
