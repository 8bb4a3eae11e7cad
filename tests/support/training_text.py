"""Text to train on: invented words, as much as a test needs."""

from __future__ import annotations

import random


def english(words: int, seed: int = 1) -> str:
    """Sentences of `words` of four hundred words that are like English's in their letters."""
    draw = random.Random(seed)
    known = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(400)]
    return " ".join(draw.choice(known) + draw.choice(["", "", ".", ",\n"]) for _ in range(words))
