"""Adapters in PEFT's format: written and read back, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from picoedge.errors import ModelError, StorageError, UnsupportedError
from picoedge.kernels.arrays import F32, Array
from picoedge.store.adapter_refusals import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from picoedge.store.adapters import Adapter, read_adapter, write_adapter

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def low_rank(rows: int, cols: int, rank: int, seed: int) -> tuple[F32, F32]:
    """A f32 [rank, cols] and B f32 [rows, rank]."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((rank, cols), (rows, rank)))
    return a, b


def sample(**changes: Any) -> Adapter:
    """An adapter of two layers of q and down."""
    matrices = {
        (layer, name): low_rank(rows, cols, 2, layer + rows)
        for layer in range(2)
        for name, rows, cols in (("q_proj", 8, 6), ("down_proj", 6, 10))
    }
    values: dict[str, Any] = {
        "base": "some/model", "rank": 2, "alpha": 4.0, "use_rslora": False,
        "targets": ("q_proj", "down_proj"), "matrices": matrices,
    }  # fmt: skip
    return Adapter(**{**values, **changes})


def rewritten(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """The sample in a folder, with other values in its config and other tensors (None: without)."""
    write_adapter(folder, sample())
    path = folder / ADAPTER_CONFIG
    values = json.loads(path.read_text()) | dict(config)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    stored = load_file(folder / ADAPTER_WEIGHTS) | dict(tensors)
    kept = {name: values for name, values in stored.items() if values is not None}
    save_file(kept, folder / ADAPTER_WEIGHTS)
    return folder


def test_an_adapter_that_is_written_is_read_back(tmp_path: Path) -> None:
    matrices = dict(sample().matrices) | {(1, "q_proj"): low_rank(8, 6, 3, 9)}
    del matrices[0, "down_proj"]
    adapter = sample(matrices=matrices, alphas={(1, "q_proj"): 1.5}, use_rslora=True)
    write_adapter(tmp_path / "new" / "adapter", adapter)
    read = read_adapter(tmp_path / "new" / "adapter")
    assert (read.base, read.rank, read.alpha, read.use_rslora) == ("some/model", 2, 4.0, True)
    assert read.targets == ("q_proj", "down_proj")
    assert read.matrices.keys() == matrices.keys()
    for key, pair in matrices.items():
        for values, expected in zip(read.matrices[key], pair, strict=True):
            np.testing.assert_array_equal(values, expected)
    assert read.scale(0, "q_proj") == 4.0 / 2**0.5
    assert read.scale(1, "q_proj") == 1.5 / 3**0.5


def test_an_adapter_replaces_another_and_leaves_other_files(tmp_path: Path) -> None:
    write_adapter(tmp_path, sample())
    (tmp_path / "log.jsonl").write_text("{}")
    write_adapter(tmp_path, sample(alpha=8.0))
    assert read_adapter(tmp_path).alpha == 8.0
    assert {p.name for p in tmp_path.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "log.jsonl"}


def test_a_file_in_the_way_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write below"):
        write_adapter(tmp_path / "file", sample())


@pytest.mark.parametrize("dtype", [np.float16, "bf16"])
def test_half_precision_is_read_exactly(tmp_path: Path, dtype: Any) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    write_adapter(tmp_path, sample())
    stored = {k: torch.from_numpy(v) for k, v in load_file(tmp_path / ADAPTER_WEIGHTS).items()}
    halves = {name: values.to(kind) for name, values in stored.items()}
    save_torch(halves, tmp_path / ADAPTER_WEIGHTS)
    a, _ = read_adapter(tmp_path).matrices[0, "q_proj"]
    np.testing.assert_array_equal(a, halves[f"{Q}.lora_A.weight"].float().numpy())


def test_patterns_of_ranks_and_alphas_are_those_of_peft(tmp_path: Path) -> None:
    a, b = low_rank(8, 6, 5, 1)
    names = {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
    patterns = {
        "rank_pattern": {"layers.0.self_attn.q_proj": 5},
        "alpha_pattern": {"down_proj": 16, "^model.layers.1.self_attn.q_proj": 1},
    }
    adapter = read_adapter(rewritten(tmp_path, patterns, names))
    assert adapter.scale(0, "q_proj") == 4 / 5
    assert adapter.scale(1, "q_proj") == 1 / 2
    assert adapter.scale(1, "down_proj") == 16 / 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "of kind IA3"),
        ({"peft_type": 7}, "peft_type is not text"),
        ({"peft_type": ...}, "peft_type is missing"),
        ({"peft_type": ..., "fine_tune_type": "lora", "num_layers": 16}, "an adapter of MLX"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"use_something_new": True}, "'use_something_new' is set"),
        ({"r": 0}, "r is not an integer from 1"),
        ({"r": 3}, "has rank 2, adapter_config.json says 3"),
        ({"r": 10**400}, "r is not an integer"),
        ({"lora_alpha": "4"}, "lora_alpha is not a number"),
        ({"lora_alpha": 10**400}, "lora_alpha is not a number"),
        ({"lora_alpha": -1}, "lora_alpha is not a number"),
        ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern holds the expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern.q_proj is not a number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is not an object"),
        ({"base_model_name_or_path": [1]}, "base_model_name_or_path is not text"),
        ({"use_rslora": 1}, "use_rslora is not true or false"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as raised:
        read_adapter(rewritten(tmp_path, config, {}))
    assert message in raised.value.message
    assert raised.value.hint


ONE = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.lora_A.weight": None}, "lora_A of model.layers.0.self_attn.q_proj is missing"),
        ({f"{Q}.lora_B.weight": None}, "lora_B of model.layers.0.self_attn.q_proj is missing"),
        ({f"{Q}.lora_A.weight": np.ones((3, 6), np.float32)}, "[r, in] and [out, r] are due"),
        ({f"{Q}.lora_A.weight": np.ones(12, np.float32)}, "[r, in] and [out, r] are due"),
        ({f"{Q}.lora_B.weight": np.full((8, 2), np.nan, np.float32)}, "holds NaN or infinity"),
        ({f"{Q}.lora_B.weight": np.full((8, 2), np.inf, np.float16)}, "holds NaN or infinity"),
        ({f"{Q}.lora_B.weight": np.ones((8, 2), np.int8)}, "has dtype I8"),
        ({f"{Q}.lora_magnitude_vector": np.ones(8, np.float32)}, "the adapter has DoRA"),
        ({"base_model.model.lm_head.lora_A.weight": ONE}, "the adapter has the head"),
        ({"base_model.model.lm_head.modules_to_save.weight": ONE}, "has whole matrices"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": ONE}, "matrices of the embed"),
        ({"base_model.model.model.embed_tokens.weight": ONE}, "where tokens were added"),
        ({f"{Q}.bias": ONE}, "trained biases"),
        (
            {Q.replace("self_attn.q_proj", "mlp.experts.0.up_proj") + ".lora_A.weight": ONE},
            "the adapter has experts",
        ),
        ({Q.replace("q_proj", "gate_proj") + ".lora_A.weight": ONE}, "belongs to nothing"),
        ({Q.replace(".0.", ".9999.") + ".lora_A.weight": ONE}, "is of layer 9999"),
        ({f"{Q}.lora_A.default.weight": ONE}, "is there twice"),
        ({"model.vision_tower.layers.0.mlp.up_proj.lora_A.weight": ONE}, "that sees images"),
        ({f"{Q}.lora_A.adapter_two.weight": ONE}, "belongs to nothing"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, tensors: dict[str, Array], message: str) -> None:
    with pytest.raises(ModelError) as raised:
        read_adapter(rewritten(tmp_path, {}, tensors))
    assert message in raised.value.message
    assert raised.value.hint


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return write


def _all_at_one_place(header: dict[str, Any]) -> None:
    longest = max(entry.get("data_offsets", [0, 0])[1] for entry in header.values())
    for name, entry in header.items():
        if name != "__metadata__":
            entry.update(shape=[1, longest // 4], data_offsets=[0, longest])


def _offsets(*offsets: int) -> Callable[[Path], None]:
    return _header(lambda header: header[f"{Q}.lora_A.weight"].update(data_offsets=offsets))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b""), "claims"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 1\n"),
            "is a Git LFS pointer",
        ),
        (lambda path: path.write_bytes(b"\xff" * 64), "claims"),
        (lambda path: path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}"), "claims"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "would end at byte"),
        (lambda path: path.write_bytes((2).to_bytes(8, "little") + b"{}"), "holds no matrices"),
        (lambda path: path.write_bytes((9).to_bytes(8, "little") + b"[" * 9), "valid JSON"),
        (_offsets(0, 1 << 60), "would end at byte"),
        (_offsets(8, 4), "damaged"),
        (_offsets(0, 40), "has 40 bytes for (2, 6)"),
        (_header(_all_at_one_place), "tensors share bytes"),
        (_header(lambda h: h[f"{Q}.lora_A.weight"].update(shape=[2, -6])), "damaged"),
        (_header(lambda h: h[f"{Q}.lora_A.weight"].update(shape=[2, 1 << 62])), "bytes for"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_adapter(tmp_path, sample())
    damage(tmp_path / ADAPTER_WEIGHTS)
    with pytest.raises(ModelError, match=message.replace("(", r"\(").replace(")", r"\)")):
        read_adapter(tmp_path)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    write_adapter(tmp_path, sample())
    (tmp_path / ADAPTER_WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match="pickle"):
        read_adapter(tmp_path)


def test_a_path_that_is_no_adapter_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no adapter"):
        read_adapter(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        read_adapter(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is no adapter"):
        read_adapter(tmp_path / "file")
    (tmp_path / "m.gguf").write_text("")
    with pytest.raises(UnsupportedError, match="is no adapter in PEFT's format"):
        read_adapter(tmp_path / "m.gguf")


def test_the_adapter_that_was_probably_meant_is_suggested(tmp_path: Path) -> None:
    for steps in (500, 1000):
        write_adapter(tmp_path / "out" / f"checkpoint-{steps}", sample())
    with pytest.raises(ModelError) as raised:
        read_adapter(tmp_path / "out")
    newest = tmp_path / "out" / "checkpoint-1000"
    assert raised.value.hint == f"did you mean {newest}?"
    with pytest.raises(ModelError) as raised:
        read_adapter(newest / ADAPTER_WEIGHTS)
    assert raised.value.hint == f"give its folder: {newest}"


def test_the_identity_is_that_of_what_it_adds(tmp_path: Path) -> None:
    def identity(adapter: Adapter) -> str:
        write_adapter(tmp_path / "a", adapter)
        return read_adapter(tmp_path / "a").identity

    first = sample()
    assert identity(first) == first.identity
    assert identity(sample(base="another/name")) == first.identity
    changed = dict(first.matrices) | {(0, "q_proj"): low_rank(8, 6, 2, 99)}
    others = [sample(alpha=5.0), sample(use_rslora=True), sample(matrices=changed)]
    others.append(sample(alphas={(1, "down_proj"): 1.0}))
    assert len({first.identity, *map(identity, others)}) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\.(q|down)_proj"},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"base_model_name_or_path": "/home/someone/models/llama", "revision": "main"},
        {"base_model_name_or_path": None, "task_type": None, "peft_version": "0.19.0"},
        {"modules_to_save": [], "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
    ],
)
def test_how_it_was_trained_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    adapter = read_adapter(rewritten(tmp_path, changes, {}))
    assert adapter.identity == sample().identity
    assert adapter.base == (changes.get("base_model_name_or_path", "some/model") or "")
