"""Emulated boards for tests: `pytest_plugins = ["lab_fixtures"]`, then the fixture `lab`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from hw.lab import Lab


@pytest.fixture
def lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs, `lab(3, LinkShape(delay_s=0.001))`, which end with the test."""
    with ExitStack() as opened:

        def make(*arguments: Any, **named: Any) -> Lab:
            return opened.enter_context(Lab(*arguments, **named))

        yield make
