"""Quantized matrix products and attention in C, with a NumPy reference backend."""
