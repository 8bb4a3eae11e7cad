"""The speed of computing: random matrices are sane, and measurements are kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planes import unpack_planes

from picoedge.host import kernel_benchmark
from picoedge.host.kernel_benchmark import cached_compute, probe_compute, random_weights
from picoedge.kernels.blocks import FORMATS, dequantize
from picoedge.kernels.loader import load_kernels

MB = 1 << 20
NOW = 1.8e9


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def kernels() -> Iterator[Any]:
    opened = load_kernels("numpy", 1)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cols", [96, 512])
def test_random_matrices_are_sane(name: str, cols: int) -> None:
    weights = random_weights(name, cols, MB)
    assert 0.9 * MB < weights.spec.nbytes <= MB
    if name == "f32":
        values = weights.spec.plane(weights.data, "values")
    else:
        values = dequantize(weights.spec, unpack_planes(weights.spec, weights.data))
    largest = np.abs(values).max()
    assert np.isfinite(values).all()
    assert 0 < largest < 300


@pytest.mark.parametrize("name", ["q4m", "q6k", "f32"])
def test_computing_is_measured_and_its_memory_freed(
    kernels: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = kernel_benchmark.anonymous, []

    def anonymous(nbytes: int) -> Any:
        array = real(nbytes)
        taken.append((nbytes, weakref.ref(array)))
        return array

    monkeypatch.setattr(kernel_benchmark, "anonymous", anonymous)
    assert probe_compute(kernels, name, 256, MB) > 1e6
    ((nbytes, array),) = taken
    assert nbytes <= MB
    assert array() is None


def test_computing_is_measured_once_for_a_kind_of_kernels(
    kernels: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([1e9, 2e9, 3e9])
    monkeypatch.setattr(kernel_benchmark, "probe_compute", lambda *_: next(speeds))
    options: dict[str, Any] = {"cache": cache, "clock": lambda: NOW}
    assert cached_compute(kernels, "q4m", 256, **options) == 1e9
    assert cached_compute(kernels, "q4m", 512, **options) == 1e9
    assert cached_compute(kernels, "q8", 256, **options) == 2e9
    kernels.threads = 3
    assert cached_compute(kernels, "q4m", 256, **options) == 3e9
