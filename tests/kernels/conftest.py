"""The backends: NumPy on one thread and on three, every native level, also of training."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kernel_levels import THREADS, Backends, build_portable, built_levels
from training_levels import training_levels

from picoedge.kernels.native import NativeKernels, open_library
from picoedge.kernels.reference.backend import NumpyKernels
from picoedge.kernels.training import NativeTrainingKernels


@pytest.fixture(params=[1, 3], ids=lambda t: f"{t}-threads")
def kernels(request: pytest.FixtureRequest) -> Iterator[NumpyKernels]:
    made = NumpyKernels(request.param)
    yield made
    made.close()


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    levels = built_levels()
    assert levels, "no C kernels are built for this processor: pip install -e ."
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    paths = [build_portable(folder), *levels]
    libraries = [open_library(path) for path in paths]
    native = [NativeKernels(lib, n) for lib in libraries for n in THREADS]
    made = Backends(native, NumpyKernels(1), libraries[1])
    yield made
    for kernels in made.native:
        kernels.close()
    made.numpy.close()


@pytest.fixture(scope="session")
def levels(tmp_path_factory: pytest.TempPathFactory) -> list[NativeTrainingKernels]:
    """A build for no processor in particular, then every level that this processor can run."""
    return training_levels(tmp_path_factory.mktemp("kernels"))
