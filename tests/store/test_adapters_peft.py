"""Adapters as PEFT itself saves them: each adds what it adds there, or is refused for what it is.

PEFT, transformers and torch take seconds to import: only these tests do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters_material import prepared, random_adapter
from random_models import packed_model
from saved_models import save_random
from transformers_models import reference_logits, relative_error

from picoedge.config import ModelConfig
from picoedge.errors import UnsupportedError
from picoedge.kernels.loader import load_kernels, load_training_kernels
from picoedge.model.transformer import Transformer
from picoedge.model.vjps import MicroBatch
from picoedge.store.adapters import Adapter, read_adapter, write_adapter
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.adapter_matrices import as_stored, canonical_matrices
from picoedge.store.sources.source import open_source
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import AdapterLayout, LoraShape

# What the libraries say of each other, and of a model that is nowhere on a hub.
pytestmark = pytest.mark.filterwarnings("ignore")

Deltas = dict[tuple[int, str], np.ndarray]
Base = Callable[[], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def config(folder: Path) -> ModelConfig:
    """Of a model with biases of q, k and v."""
    return packed_model("qwen2-bias", folder, 32).config


@pytest.fixture
def base(folder: Path, config: ModelConfig) -> Base:
    import torch
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)

    return load


def adapted(model: Any, **chosen: Any) -> Any:
    """The model with random low-rank matrices."""
    import torch
    from peft import LoraConfig, get_peft_model

    values = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(model, LoraConfig(**{**values, **chosen}))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return wrapped


def deltas_of(wrapped: Any) -> Deltas:
    """What PEFT adds to each matrix."""
    found = {}
    for name, module in wrapped.named_modules():
        if hasattr(module, "get_delta_weight") and module.lora_A:
            layer, _, kind = name.partition("layers.")[2].split(".")
            delta = module.get_delta_weight("default").detach().numpy()
            found[int(layer), kind.removesuffix("_proj")] = delta
    return found


def assert_same(adapter: Adapter, config: ModelConfig, wanted: Deltas) -> None:
    matrices = canonical_matrices(adapter, config)
    assert matrices.keys() == wanted.keys()
    for key, matrix in matrices.items():
        np.testing.assert_allclose(matrix.delta, wanted[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"target_modules": r"model\.layers\.[02]\.(self_attn|mlp)\.(v|up|o)_proj"},
        {"target_modules": ["k_proj", "gate_proj"], "layers_to_transform": [1]},
        {"exclude_modules": ["q_proj", "up_proj"], "lora_dropout": 0.1},
        {
            "rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 2},
            "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 1, "down_proj": 20},
            "use_rslora": True,
        },
        {"init_lora_weights": "gaussian", "bias": "none", "modules_to_save": []},
    ],
    ids=lambda chosen: ", ".join(chosen) or "as it comes",
)
def test_an_adapter_adds_what_it_adds_in_peft(
    tmp_path: Path, base: Base, config: ModelConfig, chosen: dict[str, Any]
) -> None:
    wrapped = adapted(base(), **chosen)
    wrapped.save_pretrained(tmp_path)
    assert_same(read_adapter(tmp_path), config, deltas_of(wrapped))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "the adapter has the embedding"),
        ({"target_modules": ["q_proj", "lm_head"]}, "the adapter has the head"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"rank_pattern": {r".*\.(q|k)_proj": 2}}, "rank_pattern holds the expression"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_an_unsupported_adapter_is_refused_by_its_kind(
    tmp_path: Path, base: Base, chosen: dict[str, Any], message: str
) -> None:
    adapted(base(), **chosen).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError) as raised:
        read_adapter(tmp_path)
    assert message in raised.value.message
    assert raised.value.hint


def test_a_head_and_an_embedding_that_were_saved_with_it_are_refused(
    tmp_path: Path, base: Base
) -> None:
    adapted(base()).save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(UnsupportedError, match="the adapter has the head"):
        read_adapter(tmp_path)


def test_weights_that_peft_pickles_are_not_read(tmp_path: Path, base: Base) -> None:
    adapted(base()).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UnsupportedError, match="PyTorch pickle"):
        read_adapter(tmp_path)


def test_peft_reads_what_is_written_here(tmp_path: Path, base: Base, config: ModelConfig) -> None:
    from peft import PeftModel

    whole = random_adapter(config)
    matrices = dict(whole.matrices)
    a, b = matrices[1, "q_proj"]
    matrices[1, "q_proj"] = a[:3], b[:, :3]
    del matrices[2, "up_proj"]
    for is_stabilized in (False, True):
        own = Adapter(
            "some/model", 4, 6.0, is_stabilized, whole.targets, matrices, {(0, "o_proj"): 2.5}
        )
        write_adapter(tmp_path, own)
        wrapped = PeftModel.from_pretrained(base(), tmp_path)
        assert_same(own, config, deltas_of(wrapped))


PHI: dict[str, dict[str, Any]] = {
    "whole heads": {"tie_word_embeddings": True},
    "a part of each head": {
        "rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 1e4},
    },
}
TOKENS = [3, 41, 59, 26, 53, 58, 96, 93, 23, 84, 62, 64, 33, 83, 27, 95]


def phi(folder: Path, options: dict[str, Any]) -> tuple[Pack, Any]:
    """A model whose projections are fused: its pack in f32, and it in transformers."""
    from transformers import AutoModelForCausalLM

    save_random(folder / "hf", "phi3", {"pad_token_id": 0, **options})
    pack_source(open_source(folder / "hf"), folder / "m.pico", bits=32)
    return Pack.open(folder / "m.pico"), AutoModelForCausalLM.from_pretrained(folder / "hf").eval()


@pytest.mark.parametrize("case", PHI)
def test_fused_matrices_compute_what_they_do_in_peft(tmp_path: Path, case: str) -> None:
    pack, base = phi(tmp_path, PHI[case])
    wrapped = adapted(base).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    adapter = prepared(pack, read_adapter(tmp_path / "adapter"))
    with closing(Transformer(pack, load_kernels("numpy", 1), 64, adapter=adapter)) as model:
        ours = np.concatenate([rows.copy() for rows in model.forward_all(TOKENS, 0)])
    assert relative_error(ours, reference_logits(wrapped, TOKENS)) < 1e-4


@pytest.mark.parametrize("case", PHI)
def test_peft_computes_what_was_trained_here(tmp_path: Path, case: str) -> None:
    from peft import PeftModel

    pack, base = phi(tmp_path, PHI[case])
    shape = LoraShape(4, 8.0, ("q_proj", "v_proj", "up_proj"))
    layout = AdapterLayout.of(FrozenModel.of(pack), shape)
    weights = np.random.default_rng(5).standard_normal(layout.length).astype(np.float32) * 0.2
    trained = as_stored(layout.adapter(weights, "some/phi"), pack.config)
    write_adapter(tmp_path / "adapter", trained)
    wrapped = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    parameters = layout.bind(weights, np.zeros_like(weights))
    work = MicroBatch(pack.config, load_training_kernels(), parameters, 1, len(TOKENS))
    ours = work.logits(np.asarray(TOKENS, np.int32))
    assert relative_error(ours, reference_logits(wrapped, TOKENS)[-1]) < 1e-4
