"""The NumPy backend, on one thread and on three; the kernels of training on each level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from training_levels import training_levels

from picoedge.kernels.reference.backend import NumpyKernels
from picoedge.kernels.training import NativeTrainingKernels


@pytest.fixture(params=[1, 3], ids=lambda t: f"{t}-threads")
def kernels(request: pytest.FixtureRequest) -> Iterator[NumpyKernels]:
    made = NumpyKernels(request.param)
    yield made
    made.close()


@pytest.fixture(scope="session")
def levels(tmp_path_factory: pytest.TempPathFactory) -> list[NativeTrainingKernels]:
    """A build for no processor in particular, then every level that this processor can run."""
    return training_levels(tmp_path_factory.mktemp("kernels"))
