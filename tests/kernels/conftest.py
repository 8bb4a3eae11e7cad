"""The NumPy backend, on one thread and on three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from picoedge.kernels.reference.backend import NumpyKernels


@pytest.fixture(params=[1, 3], ids=lambda t: f"{t}-threads")
def kernels(request: pytest.FixtureRequest) -> Iterator[NumpyKernels]:
    made = NumpyKernels(request.param)
    yield made
    made.close()
