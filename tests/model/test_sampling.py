"""Samplers: tokens kept, tokens drawn, and the promise of a seed."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from picoedge.config import SamplingOptions
from picoedge.errors import ModelError, UsageError
from picoedge.model.sampling import Sampler, greedy, narrowed, penalized

OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def kept(logits: np.ndarray, **values: float) -> list[int]:
    options = SamplingOptions(**{**OPEN, **values})  # type: ignore[arg-type]
    return narrowed(logits, float(logits.max()), options).ids.tolist()


def picks(logits: np.ndarray, count: int, **values: float) -> list[int]:
    sampler = Sampler(SamplingOptions(**{**OPEN, "temperature": 1.0, **values}))  # type: ignore[arg-type]
    return [sampler.pick(logits, []) for _ in range(count)]


def random_logits(size: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * 3).astype(np.float32)


def test_temperature_zero_is_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.array([1, 5, 5, 2], np.float32)
    assert picks(logits, 3, temperature=0) == [1, 1, 1]


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-5, 1e-4])
@pytest.mark.parametrize("values", [OPEN, {}])
@pytest.mark.filterwarnings("error")
def test_however_small_a_temperature_picks_the_likeliest(
    temperature: float, values: dict[str, float]
) -> None:
    options = SamplingOptions(temperature=temperature, seed=1, **values)  # type: ignore[arg-type]
    assert Sampler(options).pick(np.array([-9, 3, 40, 1, 39], np.float32), []) == 2


def test_top_k_keeps_the_k_likeliest_in_order() -> None:
    assert kept(logits_of(0.1, 0.4, 0.2, 0.3), top_k=3) == [1, 3, 2]


@pytest.mark.parametrize("size", [10, 4096, 5000, 49152, 262144])
@pytest.mark.parametrize("k", [1, 40, 600])
def test_top_k_equals_a_full_sort_at_every_size(size: int, k: int) -> None:
    logits = random_logits(size)
    if k < size:
        assert kept(logits, top_k=k) == np.argsort(-logits, kind="stable")[:k].tolist()


def test_top_k_survives_a_vocabulary_of_ties() -> None:
    logits = np.zeros(49152, np.float32)
    assert kept(logits, top_k=5) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    assert kept(logits, top_p=0.4) == [0]
    assert kept(logits, top_p=0.75) == [0, 1]
    assert kept(logits, top_p=0.9) == [0, 1, 2]


def test_top_p_counts_what_top_k_left() -> None:
    # of 0.4 and 0.3 the first alone is 57 %
    assert kept(logits_of(0.4, 0.3, 0.2, 0.1), top_k=2, top_p=0.5) == [0]
    assert kept(logits_of(0.4, 0.3, 0.2, 0.1), top_p=0.5) == [0, 1]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("min_p", [0.0, 0.01])
def test_top_p_over_a_large_vocabulary_equals_the_definition(top_p: float, min_p: float) -> None:
    logits = random_logits(50_000, seed=3)
    order = np.argsort(-logits, kind="stable")
    p = np.exp(logits[order].astype(np.float64))
    count = int(np.searchsorted(np.cumsum(p) / p.sum(), top_p)) + 1
    count = min(count, int(np.count_nonzero(p >= min_p * p[0])))
    assert kept(logits, top_p=top_p, min_p=min_p) == order[:count].tolist()


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert kept(logits_of(0.5, 0.26, 0.14, 0.1), min_p=0.5) == [0, 1]


def test_one_candidate_always_remains() -> None:
    assert kept(logits_of(0.9, 0.1), top_p=0.0) == [0]
    assert kept(logits_of(0.9, 0.1), min_p=1.0) == [0]
    assert kept(logits_of(0.9, 0.1), top_k=1) == [0]


@pytest.mark.parametrize("values", [{}, {"top_k": 3}, {"top_p": 0.9999}])
def test_draws_follow_the_probabilities(values: dict[str, float]) -> None:
    p = (0.6, 0.3, 0.1)
    counts = Counter(picks(logits_of(*p), 4000, seed=1, **values))
    for token, probability in enumerate(p):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_draws_from_a_large_vocabulary_follow_the_probabilities() -> None:
    logits = np.full(5000, -30, np.float32)
    logits[[10, 4990]] = np.log(np.array([0.25, 0.75], np.float32))
    counts = Counter(picks(logits, 4000, seed=1))
    assert set(counts) == {10, 4990}
    assert counts[10] / 4000 == pytest.approx(0.25, abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    logits = logits_of(0.6, 0.4)
    share = {
        t: picks(logits, 4000, seed=1, top_k=1000, min_p=1e-9, temperature=t).count(0) / 4000
        for t in (0.2, 1.0, 5.0)
    }
    for t, measured in share.items():
        expected = 0.6 ** (1 / t) / (0.6 ** (1 / t) + 0.4 ** (1 / t))
        assert measured == pytest.approx(expected, abs=0.03)


def test_a_seed_gives_the_same_choices_and_another_seed_others() -> None:
    logits = random_logits(2000)
    assert picks(logits, 50, seed=7) == picks(logits, 50, seed=7)
    assert picks(logits, 50, seed=7) != picks(logits, 50, seed=8)


def test_without_a_seed_choices_differ() -> None:
    logits = np.zeros(2000, np.float32)
    assert picks(logits, 50) != picks(logits, 50)


def test_repeat_penalty_makes_recent_tokens_less_likely_whatever_their_sign() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    out = penalized(logits, [0, 1, 1, 99], 2.0)
    assert out.tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_repeat_penalty_looks_back_only_as_far_as_asked() -> None:
    logits = np.array([2.0, 1.5], np.float32)
    near = Sampler(SamplingOptions(temperature=0, repeat_penalty=2.0, repeat_last_n=2))
    assert near.pick(logits, [0, 1, 1]) == 0
    assert near.pick(logits, [1, 0, 1]) == 0
    far = Sampler(SamplingOptions(temperature=0, repeat_penalty=2.0, repeat_last_n=3))
    assert far.pick(logits, [0, 9, 9]) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits_are_an_error_not_a_token(bad: float, temperature: float) -> None:
    logits = np.zeros(8, np.float32)
    logits[3] = bad
    with pytest.raises(ModelError, match="token 3"):
        Sampler(SamplingOptions(temperature=temperature)).pick(logits, [])


def test_greedy_refuses_all_minus_infinity() -> None:
    with pytest.raises(ModelError):
        greedy(np.full(4, -np.inf, np.float32))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repeat_penalty": 0},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        SamplingOptions(**values)  # type: ignore[arg-type]
