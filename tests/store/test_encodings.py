"""Source blocks taken apart, laid out, and read back."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from planes import unpack_planes
from store_models import EXACT, as_floats, random_rows

from picoedge.errors import UnsupportedError
from picoedge.kernels.blocks import FORMATS, MatrixSpec, dequantize, pack_planes
from picoedge.store.encodings import ENCODINGS, ggml_encoding
from picoedge.store.pack.quantize import VISIBLE_ERROR, error_power, narrowest_format, quantize

CODEBOOKS = [e.name for e in ENCODINGS.values() if not e.format and not e.is_float]
PLAIN_FORMATS = ("q4m", "q5m", "q6", "q8")


@pytest.mark.parametrize("name", EXACT)
def test_blocks_taken_apart_are_exactly_what_the_library_dequantizes(name: str) -> None:
    rows = random_rows(name, 21, 768, seed=3)
    assert np.array_equal(ENCODINGS[name].floats(rows), as_floats(name, rows))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("n_rows", [1, 16, 37])
def test_laying_out_and_reading_back_is_the_identity(name: str, n_rows: int) -> None:
    encoding = ENCODINGS[name]
    rows = random_rows(name, n_rows, 512, seed=5)
    fmt = FORMATS[encoding.format]
    spec = MatrixSpec(fmt, n_rows, 512, 64, 256 if fmt.superblocks else 0)
    shard = np.zeros(64 + spec.nbytes, np.uint8)
    pack_planes(spec, encoding.quants(rows), shard)
    assert np.array_equal(dequantize(spec, unpack_planes(spec, shard)), as_floats(name, rows))


@pytest.mark.parametrize("name", [*CODEBOOKS, "F16", "BF16", "F32"])
def test_other_types_come_as_the_library_gives_them(name: str) -> None:
    rows = random_rows(name, 5, 512, seed=7)
    values = ENCODINGS[name].floats(rows)
    assert values.shape == (5, 512)
    assert np.array_equal(values, as_floats(name, rows))


def test_every_type_the_library_dequantizes_is_read() -> None:
    traits = gguf.quants._type_traits
    assert {t.name for t in traits} <= set(ENCODINGS)
    for kind in gguf.GGMLQuantizationType:
        if kind.name in ENCODINGS:
            encoding = ggml_encoding(kind.value, "t")
            sizes = gguf.GGML_QUANT_SIZES[kind]
            assert (encoding.name, encoding.elements, encoding.nbytes) == (kind.name, *sizes)


@pytest.mark.parametrize(("number", "what"), [(24, "I8"), (28, "F64"), (4, "4"), (9999, "9999")])
def test_an_unknown_type_is_refused_by_name_and_tensor(number: int, what: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"blk\.7\.x .*{what}"):
        ggml_encoding(number, "blk.7.x")


# Half a step of the format's grid over the block's range, and what f16 loses of scale and offset.
STEPS = {"q4m": 15, "q5m": 31, "q6": 62, "q8": 254}
finite = st.floats(-100, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (3, 64), elements=finite), st.sampled_from(PLAIN_FORMATS))
def test_quantizing_moves_a_weight_by_at_most_half_a_step(values: np.ndarray, name: str) -> None:
    back = dequantize(MatrixSpec(FORMATS[name], 3, 64), quantize(values, FORMATS[name], "t"))
    blocks, moved = values.reshape(3, 2, 32), np.abs(back - values).reshape(3, 2, 32)
    largest = np.abs(blocks).max(axis=2)
    reach = blocks.max(axis=2) - blocks.min(axis=2) if FORMATS[name].has_min else 2 * largest
    # The symmetric grid has one step fewer on one side.
    limit = reach / STEPS[name] * (1.0 if name == "q6" else 0.5) + largest * 2e-3 + 2e-5
    assert (moved.max(axis=2) <= limit).all()


def test_zeros_and_one_value_survive_quantizing() -> None:
    for name in PLAIN_FORMATS:
        spec = MatrixSpec(FORMATS[name], 2, 32)
        assert not dequantize(spec, quantize(np.zeros((2, 32), np.float32), spec.format, "t")).any()
        ones = np.full((2, 32), 0.5, np.float32)
        assert np.allclose(dequantize(spec, quantize(ones, spec.format, "t")), ones, rtol=2e-3)


def test_the_narrowest_format_is_the_first_that_is_close_enough() -> None:
    rng = np.random.default_rng(0)
    sixteen_levels = rng.integers(0, 16, (4, 64)).astype(np.float32) * 0.25
    assert narrowest_format(sixteen_levels) == "q4m"
    gaussian = rng.normal(size=(16, 256)).astype(np.float32)
    chosen = narrowest_format(gaussian)
    power = float(np.square(gaussian).sum())
    assert error_power(gaussian, chosen) <= VISIBLE_ERROR**2 * power
    narrower = PLAIN_FORMATS[: PLAIN_FORMATS.index(chosen)]
    assert all(error_power(gaussian, name) > VISIBLE_ERROR**2 * power for name in narrower)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_requantized_codebooks_stay_close(name: str) -> None:
    values = as_floats(name, random_rows(name, 16, 512, seed=9))
    chosen = narrowest_format(values)
    share = error_power(values, chosen) / float(np.square(values, dtype=np.float64).sum())
    assert share <= VISIBLE_ERROR**2
