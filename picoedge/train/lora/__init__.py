"""LoRA: low-rank adapters trained on the frozen, quantized weights of a pack (arXiv 2106.09685)."""
