"""What benchmarks compare with: agreement, the reference, and the profile of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_models import write_gguf
from tiny_model import write_tiny_model

from bench import agreement, peers_torch, profile
from bench.__main__ import main as bench_main
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source


def chunks(logits: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for at in range(0, len(logits), size):
        yield logits[at : at + size]


def test_perplexity_is_of_each_id_given_those_before() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((9, 50)).astype(np.float32)
    ids = rng.integers(0, 50, 9).tolist()
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    expected = math.exp(-np.mean([math.log(p[i, ids[i + 1]]) for i in range(8)]))
    for size in (1, 4, 9):
        assert agreement.perplexity(ids, chunks(logits, size)) == pytest.approx(expected)
    flat = np.zeros((9, 50), np.float32)
    assert agreement.perplexity(ids, chunks(flat, 3)) == pytest.approx(50)


def reference(folder: Path) -> tuple[np.ndarray, list[int]]:
    """A reference of one text, 4 ids given and 5 generated, and its logits after every id."""
    logits = np.random.default_rng(1).standard_normal((8, 20)).astype(np.float32)
    logits[np.arange(8), np.arange(8)] = 6.0  # every gap is wide
    np.save(folder / "logits-0.npy", logits[3:])
    ids = [0] * 4 + logits[3:].argmax(axis=1).tolist()
    agreement.write_texts(str(folder), [{"ids": ids, "prompt": 4}])
    return logits, ids


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_reference_agrees_with_itself(tmp_path: Path, size: int) -> None:
    logits, ids = reference(tmp_path)

    def own(given: list[int]) -> Iterator[np.ndarray]:
        assert given == ids[:-1]
        return chunks(logits, size)

    found = agreement.follow(str(tmp_path), own)
    assert (found["positions"], found["wide"], found["top1"]) == (5, 5, 1.0)
    assert found["mean_kl"] == pytest.approx(0, abs=1e-12)


def test_another_choice_at_a_clear_position_counts(tmp_path: Path) -> None:
    logits, _ = reference(tmp_path)
    other = logits.copy()
    other[5, 19] = 9.0
    found = agreement.follow(str(tmp_path), lambda ids: chunks(other, 3))
    assert found["top1"] == pytest.approx(4 / 5)
    assert found["mean_kl"] > 0.1
    other = logits.copy()
    other[2, 19] = 9.0  # inside the prompt: not asked for
    assert agreement.follow(str(tmp_path), lambda ids: chunks(other, 3))["top1"] == 1.0


def test_a_close_call_does_not_count() -> None:
    ours: dict[str, list[Any]] = {
        "gap": [0.24, 0.26, 3.0],
        "same": [False, True, True],
        "kl": [0.0, 0.0, 0.3],
    }
    found = agreement.summary(ours)
    assert (found["top1"], found["wide"]) == (1.0, 2)
    assert found["top1_all"] == pytest.approx(2 / 3)
    assert found["missed_gaps"] == [0.24]
    assert found["mean_kl"] == pytest.approx(0.1)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_reference_of_a_gguf_computes_what_we_do(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    write_gguf(tmp_path / "m.gguf", architecture=architecture, tied=tied)
    ids = np.random.default_rng(2).integers(0, 64, 40).tolist()
    model = peers_torch.build(str(tmp_path / "m.gguf"))
    theirs = np.concatenate(list(peers_torch.logits_of(model, ids)))
    pack_source(open_source(tmp_path / "m.gguf"), tmp_path / "m.pico", bits=32)
    own = Transformer(Pack.open(tmp_path / "m.pico"), load_kernels("numpy", 1), 64)
    ours = np.concatenate([part.copy() for part in own.forward_all(ids, 0)])
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_the_reference_continues_as_if_read_at_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", architecture="gemma3")
    model = peers_torch.build(str(tmp_path / "m.gguf"))
    ids, logits = peers_torch.greedy(model, [5, 9, 2], 20)
    whole = np.concatenate(list(peers_torch.logits_of(model, ids)))
    assert ids[:3] == [5, 9, 2]
    assert logits.shape == (20, whole.shape[1])
    assert np.abs(whole[2:-1] - logits).max() < 1e-3 * np.abs(whole).max()
    assert logits.argmax(axis=1).tolist() == ids[3:]


@pytest.fixture(scope="module")
def tiny_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    pack_source(open_source(write_tiny_model(folder / "hf")), folder / "tiny.pico", bits=4)
    return folder / "tiny.pico"


def test_a_timed_model_computes_the_same(tiny_pack: Path) -> None:
    timed = profile.TimedKernels(load_kernels(None, 1))
    ours, plain = (
        Transformer(Pack.open(tiny_pack), kernels, 64).forward([1, 2, 3], 0).copy()
        for kernels in (timed, load_kernels(None, 1))
    )
    assert np.array_equal(ours, plain)
    assert timed.bound == 5 * 3 + 1


def test_a_profile_adds_up(tiny_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main(["profile", str(tiny_pack), "-t", "1"]) == 0
    out = capsys.readouterr().out
    for name in ("project_qkv", "attend", "project_down", "project_head", "python between"):
        assert out.count(f"| {name} |") == 2
    runs = [(1.0, {"a": 0.25, "b": 0.5}), (1.0, {"a": 0.25, "b": 0.5})]
    times = profile.breakdown(runs, shell_s=0.05)
    assert times == pytest.approx({"a": 250, "b": 500, "python between": 200, "whole": 950})
