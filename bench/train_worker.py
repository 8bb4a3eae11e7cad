"""What both sides' processes of the bench `train` do: answer one request, or steps by turns."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.train_shapes import Course
from picoedge.kernels.arrays import I32

WARM_STEPS = 2  # before the first turn: memory is taken, caches are filled


def main(jobs: Mapping[str, Callable[..., Any]]) -> int:
    """Answer the request on the first line of stdin; a job that answers itself gives None."""
    request = json.loads(sys.stdin.readline())
    answer = jobs[request.pop("job")](**request)
    if answer is not None:
        print(json.dumps(answer))
    return 0


def serve(step: Callable[[int], float]) -> None:
    """Take steps when asked. First the losses of the warm-up are said, as one line of JSON.

    Then each line of stdin is a number of steps, which is answered by their [wall, CPU] seconds.
    """
    done = WARM_STEPS
    _say([step(number) for number in range(1, done + 1)])
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            done += 1
            wall, cpu = time.perf_counter(), time.process_time()
            step(done)
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))
        _say(taken)


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def go_through(
    course: Course, ids: I32, step: Callable[[I32], float], loss: Callable[[I32], float]
) -> float:
    """The held-out loss, the mean of its windows, after the steps of a course."""
    for number in range(1, course.steps + 1):
        step(course.windows(ids, number))
    held_out = course.held_out_windows(ids)
    parts = [held_out[at : at + course.rows] for at in range(0, len(held_out), course.rows)]
    return sum(loss(part) * len(part) for part in parts) / len(held_out)
