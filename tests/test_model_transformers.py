"""Every architecture, on small random configurations, against `transformers` in f32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack import pack
from picoedge.store.reader import Pack
from picoedge.store.sources import open_source

SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def llama(**changes: Any) -> Any:
    config = transformers.LlamaConfig(**{**SIZES, **changes})
    return transformers.LlamaForCausalLM(config)


def mistral(**changes: Any) -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**{**SIZES, **changes}))


def qwen2(**changes: Any) -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**SIZES, **changes}))


def qwen3(**changes: Any) -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**SIZES, **changes}))


def gemma3(**changes: Any) -> Any:
    sizes = {**SIZES, "num_hidden_layers": 7, "sliding_window": 9, "query_pre_attn_scalar": 24}
    config = transformers.Gemma3TextConfig(**{**sizes, **changes})
    return transformers.Gemma3ForCausalLM(config)


CASES: dict[str, Callable[[], Any]] = {
    "llama": lambda: llama(),
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-3-groups-of-3": lambda: llama(
        hidden_size=144, num_attention_heads=9, num_key_value_heads=3
    ),
    "llama-rope-llama3": lambda: llama(rope_parameters=LLAMA3),
    "llama-rope-linear": lambda: llama(rope_parameters=LINEAR),
    "llama-one-kv-head": lambda: llama(
        hidden_size=160, num_attention_heads=5, num_key_value_heads=1, head_dim=32
    ),
    "mistral-window": lambda: mistral(sliding_window=11),
    "mistral": lambda: mistral(sliding_window=None),
    "qwen2-bias": lambda: qwen2(tie_word_embeddings=True),
    "qwen3-norms": lambda: qwen3(),
    "gemma3": lambda: gemma3(),
}


def randomize(model: Any) -> None:
    """Weights wide enough that every part of the layer shows in the logits; norms, biases too."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                (0.2 * noise + ("norm" in name)) if parameter.dim() == 1 else 0.09 * noise
            )


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(reference model, the same packed as f32)"""
    model = CASES[request.param]().eval().to(torch.float32)
    randomize(model)
    folder: Path = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder / "hf")
    pack(open_source(folder / "hf"), folder / "m.pico", bits=32)
    return model, Pack.open(folder / "m.pico")


def reference_logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("length", [1, 7, 33, 70])
@pytest.mark.parametrize("kind", ["numpy", None], ids=["numpy", "best"])
def test_logits_of_every_position_equal_the_reference(
    pair: Any, length: int, kind: str | None
) -> None:
    model, packed = pair
    tokens = [(17 * i + 3) % 211 for i in range(length)]
    ours = Transformer(packed, load_kernels(kind, 2), 96, batch=32)
    got = np.concatenate([rows.copy() for rows in ours.forward_all(tokens, 0)])
    ours.close()
    assert relative_error(got, reference_logits(model, tokens)) < 1e-3


def test_the_cache_continued_token_by_token_equals_the_reference(pair: Any) -> None:
    model, packed = pair
    tokens = [(29 * i + 5) % 211 for i in range(40)]
    want = reference_logits(model, tokens)
    ours = Transformer(packed, load_kernels(None, 1), 64, batch=8)
    logits = ours.forward(tokens[:13], 0)
    assert relative_error(logits, want[12]) < 1e-3
    for i in range(13, 40):
        logits = ours.forward(tokens[i : i + 1], i)
        assert relative_error(logits, want[i]) < 1e-3
    ours.close()


def test_a_prompt_rewound_and_continued_otherwise_forgets_what_followed(pair: Any) -> None:
    model, packed = pair
    first, second = [5, 80, 3, 9, 44, 101], [5, 80, 3, 12, 7]
    ours = Transformer(packed, load_kernels(None, 1), 32, batch=4)
    ours.forward(first, 0)
    logits = ours.forward(second[3:], 3)
    ours.close()
    assert relative_error(logits, reference_logits(model, second)[-1]) < 1e-3
