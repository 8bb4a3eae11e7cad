"""Signals that ask long work to end: once to save, Ctrl-C again to end at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from picoedge.cli.signals import StopRequest

TWICE = """
import os, signal
from picoedge.cli.signals import StopRequest
with StopRequest("saving") as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop()
    os.kill(os.getpid(), signal.SIGINT)
    print("lost", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_handlers_come_back(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with StopRequest("saving after this step") as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.number == number
        os.kill(os.getpid(), signal.SIGHUP)  # kernel and shell both send it
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == number
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err == "\nsaving after this step\n"


def test_an_ignored_signal_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest("saving") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_ctrl_c_ends_at_once() -> None:
    ran = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, timeout=60)
    assert ran.returncode == -signal.SIGINT
    assert (ran.stdout, ran.stderr) == (b"", b"\nsaving\n")


def test_a_lost_terminal_is_no_error() -> None:
    kept = os.dup(2)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, 2)
        with StopRequest("saving") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(full)
