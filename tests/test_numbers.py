"""Numbers of strangers that are larger than any float."""

from __future__ import annotations

import math
from typing import Any

import pytest

from picoedge.config import SamplingOptions, model_sampling
from picoedge.errors import UsageError
from picoedge.units import parse_size

HUGE = [10**400, -(10**400), math.inf, -math.inf, math.nan]
NAMES = ["large", "small", "inf", "-inf", "nan"]


@pytest.mark.parametrize("value", HUGE, ids=NAMES)
@pytest.mark.parametrize("name", ["temperature", "top_k", "repetition_penalty"])
def test_a_model_advice_of_a_number_out_of_range_is_left_out(name: str, value: Any) -> None:
    assert model_sampling({name: value, "top_p": 0.5}) == {"top_p": 0.5}


@pytest.mark.parametrize("value", HUGE, ids=NAMES)
@pytest.mark.parametrize("name", ["temperature", "top_k", "seed"])
def test_an_option_out_of_range_is_refused_in_short(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is ") as refused:
        SamplingOptions(**{name: value})
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize("text", ["9" * 400, "1" * 300 + "G", "1." + "0" * 400 + "K"], ids="abc")
def test_a_size_of_hundreds_of_digits_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)
