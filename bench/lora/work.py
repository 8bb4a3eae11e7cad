"""What both sides of the LoRA rows train: adapters of q and v, on windows of one text."""

from __future__ import annotations

import numpy as np

from picoedge.kernels.arrays import I32

RANK, ALPHA, TARGETS = 8, 16.0, ("q_proj", "v_proj")
LENGTH, ROWS = 256, 4  # tokens of a sequence; sequences of a step
RATE, WARMUP, STEPS = 1e-3, 1, 1000  # of the schedule: the second loss shows what a step has done
CLIP, BETAS, EPSILON = 1.0, (0.9, 0.999), 1e-8


def windows(ids: I32, step: int) -> I32:
    """Windows of the text for a step, i32 [ROWS, LENGTH + 1]: by its number alone."""
    random = np.random.default_rng(step)
    starts = random.integers(0, len(ids) - LENGTH, ROWS)
    return np.stack([ids[start : start + LENGTH + 1] for start in starts]).astype(np.int32)
