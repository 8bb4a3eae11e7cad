"""Every architecture, on small random configurations, against `transformers` in f32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import CASES, VOCAB, packed_model
from transformers_models import reference_logits, reference_model, relative_error, rms_error

from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer

TOKENS = [(31 * i + 7) % VOCAB for i in range(41)]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(reference model, the same packed as f32)"""
    folder = tmp_path_factory.mktemp("model")
    packed = packed_model(request.param, folder, 32)
    return reference_model(folder / "hf"), packed


@pytest.mark.parametrize("length", [1, 7, 33, 70])
@pytest.mark.parametrize("kind", ["numpy", None], ids=["numpy", "best"])
def test_logits_of_every_position_equal_the_reference(
    pair: Any, length: int, kind: str | None
) -> None:
    model, packed = pair
    tokens = [(17 * i + 3) % VOCAB for i in range(length)]
    ours = Transformer(packed, load_kernels(kind, 2), 96, batch=32)
    got = np.concatenate([rows.copy() for rows in ours.forward_all(tokens, 0)])
    ours.close()
    assert relative_error(got, reference_logits(model, tokens)) < 1e-3


def test_the_cache_continued_token_by_token_equals_the_reference(pair: Any) -> None:
    model, packed = pair
    tokens = [(29 * i + 5) % VOCAB for i in range(40)]
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


@pytest.mark.parametrize("case", CASES)
def test_8_bit_logits_are_near_the_reference(case: str, tmp_path: Path) -> None:
    packed = packed_model(case, tmp_path, 8, blocks=True)
    want = reference_logits(reference_model(tmp_path / "hf"), TOKENS)
    ours = Transformer(packed, load_kernels("native", 1), 64)
    got = np.concatenate([rows.copy() for rows in ours.forward_all(TOKENS, 0)])
    ours.close()
    assert rms_error(got, want) < 0.2  # 8 bits, and a random model doubles each rounding
