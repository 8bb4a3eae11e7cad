"""Parts of targets: how samples of one kind are mutated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from fuzz.mutate import mutate_bytes, mutate_json, mutate_text, to_json


def of_texts(given: Sequence[bytes]) -> dict[str, Any]:
    def mutate(rng: Random, samples: Sequence[bytes]) -> bytes:
        sample = rng.choice(samples)
        if rng.randrange(3) == 0:
            return mutate_bytes(rng, sample, samples)
        return mutate_text(rng, sample.decode("utf-8", "replace")).encode("utf-8", "surrogatepass")

    return {"samples": lambda: given, "mutate": mutate}


def of_bytes(samples: Callable[[], Sequence[bytes]]) -> dict[str, Any]:
    return {
        "samples": samples,
        "mutate": lambda rng, given: mutate_bytes(rng, rng.choice(given), given),
    }


def of_json(value: Any) -> dict[str, Any]:
    sample = to_json(value)
    return {"samples": lambda: [sample], "mutate": lambda rng, given: mutate_json(rng, given[0])}


def of_values(values: Sequence[Any], names: Sequence[str] = ()) -> dict[str, Any]:
    samples = [to_json(value) for value in values]
    return {
        "samples": lambda: samples,
        "mutate": lambda rng, given: mutate_json(rng, rng.choice(given), names),
    }
