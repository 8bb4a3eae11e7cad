"""Logits of a Hugging Face folder by `transformers`, the reference.

It and torch take seconds to import: only tests that use them do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def reference_model(folder: Path) -> Any:
    """The model of the folder, in f32."""
    import torch
    import transformers

    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def reference_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """Logits after every token, [n, vocab]."""
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    return logits


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference in units of the largest logit."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def rms_error(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the differences in units of that of the logits."""
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))
