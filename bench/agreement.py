"""How well one implementation's logits follow another's; the arithmetic, and a file format.

A reference is a folder: `texts.json` (per text: ids, and how many of them are the prompt) and
`logits-N.npy`, f32 [generated, vocab]: row i is what predicts generated token i.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picoedge.kernels.arrays import F32, F64

WIDE_GAP = 0.25  # logits between the two likeliest, from which on the top-1 must agree


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> F64:
    """Natural logarithms of the probabilities, f64, over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def perplexity(ids: Sequence[int], chunks: Iterable[F32]) -> float:
    """exp of the mean negative log-likelihood of ids[1:], each given all ids before it.

    `chunks` yields logits f32 [n, vocab] after ids[0], ids[1], … in order.
    """
    total, at = 0.0, 0
    for logits in chunks:
        for row in logits:
            if at + 1 < len(ids):
                total -= float(log_softmax(row)[ids[at + 1]])
            at += 1
    assert at >= len(ids) - 1 > 0
    return math.exp(total / (len(ids) - 1))


def top2_gap(logits: F32) -> F32:
    """Difference of the two largest of each row, f32 [n]; logits f32 [n, vocab]."""
    two = np.partition(logits, -2, axis=-1)[:, -2:]
    gap: F32 = two[:, 1] - two[:, 0]
    return gap


def compare(reference: F32, other: F32) -> dict[str, list[Any]]:
    """Per position: the reference's top-2 gap, whether the top-1 agrees, KL(reference || other).

    Both f32 [n, vocab]; KL in nats.
    """
    p, q = log_softmax(reference), log_softmax(other)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    same = reference.argmax(axis=-1) == other.argmax(axis=-1)
    return {"gap": top2_gap(reference).tolist(), "same": same.tolist(), "kl": kl.tolist()}


def follow(folder: str, logits_of: Callable[[list[int]], Iterator[F32]]) -> dict[str, Any]:
    """Force an implementation along the reference's texts and sum up how it agrees."""
    positions: dict[str, list[Any]] = {"gap": [], "same": [], "kl": []}
    for n, text in enumerate(read_texts(folder)):
        reference = np.load(Path(folder, f"logits-{n}.npy"), mmap_mode="r")
        at = 1 - text["prompt"]  # of the reference's rows, for the first id's logits
        for chunk in logits_of(text["ids"][:-1]):
            rows = range(max(at, 0), at + len(chunk))
            if rows:
                own = chunk[rows.start - at :]
                for key, values in compare(reference[rows.start : rows.stop], own).items():
                    positions[key].extend(values)
            at += len(chunk)
    return summary(positions)


def summary(positions: dict[str, list[Any]]) -> dict[str, Any]:
    """The share of wide-gap positions where the top-1 agrees, the mean KL, and the misses."""
    gap, same = np.asarray(positions["gap"]), np.asarray(positions["same"], dtype=bool)
    wide = gap >= WIDE_GAP
    return {
        "positions": len(gap),
        "wide": int(wide.sum()),
        "top1": float(same[wide].mean()) if wide.any() else 1.0,
        "top1_all": float(same.mean()),
        "mean_kl": float(np.mean(positions["kl"])),
        "missed_gaps": sorted(gap[~same].tolist(), reverse=True),
    }


def read_texts(folder: str) -> list[dict[str, Any]]:
    """The reference's texts: `ids` and `prompt`, the number of ids that were given."""
    texts: list[dict[str, Any]] = json.loads(Path(folder, "texts.json").read_text())
    return texts


def write_texts(folder: str, texts: list[dict[str, Any]]) -> None:
    """The inverse of `read_texts`."""
    Path(folder, "texts.json").write_text(json.dumps(texts))
