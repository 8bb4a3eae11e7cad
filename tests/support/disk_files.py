"""Sizes, times and faults of disks."""

from __future__ import annotations

import os
from typing import Any

MB = 1 << 20
DAY_S = 86400.0
NOW = 1.8e9


def failing(number: int) -> Any:
    def fail(*args: Any, **options: Any) -> int:
        raise OSError(number, os.strerror(number))

    return fail
