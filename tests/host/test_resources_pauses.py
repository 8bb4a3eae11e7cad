"""Pauses of this process, noticed by gaps between two looks at the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from picoedge.host.resources import PAUSE_S, TICK_S, PauseDetector

WATCH = """
import sys, time
from picoedge.host.resources import PauseWatch
watch = PauseWatch()
print(watch.take(), flush=True)
sys.stdin.readline()
print(watch.take() is not None, watch.take(), flush=True)
watch.close()
"""


def test_a_gap_is_a_pause_and_a_late_look_is_none() -> None:
    detector = PauseDetector(10.0)
    detector.look(10.0 + TICK_S)
    detector.look(10.0 + 2 * TICK_S + PAUSE_S / 2)
    assert detector.paused_s is None
    detector.look(20.0)
    assert detector.paused_s == 20.0
    detector.look(20.0 + TICK_S)
    assert detector.paused_s == 20.0


def test_a_clock_that_goes_back_is_no_pause() -> None:
    detector = PauseDetector(10.0)
    detector.look(9.0)
    detector.look(10.5)
    assert detector.paused_s is None


def test_a_stopped_process_knows_that_it_was() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    with child:
        child.stdout.readline()
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(TICK_S + PAUSE_S + 0.1)  # the pause itself
        os.kill(child.pid, signal.SIGCONT)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "True None\n"
