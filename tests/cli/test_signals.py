"""Signals that arrive in a finalizer, where Python drops exceptions, are not lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FINALIZER = """
import os, signal, sys, time
from picoedge.cli import signals

class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(100_000):
            pass

signals.raise_on_signals()
try:
    Interrupted()
    time.sleep(30)
    print("lost")
except (KeyboardInterrupt, signals.Terminated) as error:
    print(type(error).__name__)
"""


# The repetition comes at once, while the finalizer's exception is still being handled.
AT_ONCE = """
import threading, types
real = threading.Thread
def first(target, daemon):
    threading.Thread = real
    return types.SimpleNamespace(start=target)
threading.Thread = first
"""


@pytest.mark.parametrize("before", ["", AT_ONCE], ids=["later", "at once"])
@pytest.mark.parametrize(
    ("number", "raised"), [(2, "KeyboardInterrupt"), (15, "Terminated"), (1, "Terminated")]
)
def test_a_signal_in_a_finalizer_is_not_lost(number: int, raised: str, before: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", before + FINALIZER, str(number)], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{raised}\n", "")


def test_other_errors_in_a_finalizer_are_still_printed() -> None:
    code = (
        "from picoedge.cli import signals\nsignals.raise_on_signals()\n"
        "class A:\n    def __del__(self): raise ValueError('said')\nA()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert "ValueError: said" in done.stderr
