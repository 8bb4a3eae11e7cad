"""One sum of 16 KB over four boards, beside a TCP echo through the same switch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench.children import ROOT, BenchError, clean_environment
from bench.mesh_cluster import lab_of
from bench.mesh_models import MeshModels
from bench.report import Measured
from bench.speed import by_turns
from hw.lab import Board, BoardLimits, Lab, LinkShape
from picoedge.mesh.identity.identity import KeyPair

BOARDS, SUMS, TIMEOUT_S = 4, 200, 120.0
LINK = LinkShape(delay_s=0.001)


def sums_of_16kb(models: MeshModels, rounds: int) -> list[Measured]:
    """The median time between two sums ÷ that of an echo; of the exchange, ÷ half of one."""
    with lab_of(BOARDS, LINK, BoardLimits(), models.folder) as lab:
        sides: dict[str, Callable[[], float]] = {
            kind: lambda kind=kind: median_s(lab, kind)  # type: ignore[misc]
            for kind in ("echo", "star", "exchange")
        }
        taken = by_turns(sides, rounds)
    return [
        against_echo("star_16kb", taken["star"], taken["echo"], 1.0),
        against_echo("exchange_16kb", taken["exchange"], taken["echo"], 0.5),
    ]


def against_echo(name: str, sums: list[float], echoes: list[float], part: float) -> Measured:
    """Medians of all rounds compared."""
    value = statistics.median(sums) / (part * statistics.median(echoes))
    runs = tuple(a / (part * b) for a, b in zip(sums, echoes, strict=True))
    note = f"{1e3 * statistics.median(sums):.2f} ms, echo {1e3 * statistics.median(echoes):.2f} ms"
    return Measured(name, value, runs, {"sum_s": sums, "echo_s": echoes}, note)


def median_s(lab: Lab, kind: str) -> float:
    """Seconds of a sum or an echo: processes on all boards, started from the last."""
    keys = [KeyPair.new() for _ in lab.boards]
    addresses: dict[str, str] = {}
    with ExitStack() as stack:
        for rank in reversed(range(len(lab.boards))):
            process = _start(stack, lab.boards[rank])
            request = {
                "kind": kind, "rank": rank, "host": lab.boards[rank].address, "sums": SUMS,
                "publics": [pair.public for pair in keys], "secret": keys[rank].secret,
                "addresses": addresses,
            }  # fmt: skip
            _write(process, request)
            if rank:
                port = json.loads(_line(process))["port"]
                addresses[str(rank)] = f"{lab.boards[rank].address}:{port}"
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{kind}: sums took too long") from error
        if process.returncode:
            raise BenchError(f"{kind}: {err[-400:]}")
        seconds = json.loads(out.splitlines()[-1])["seconds"]
        return float(statistics.median(seconds[len(seconds) // 10 :]))


def _start(stack: ExitStack, board: Board) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = board.start(
        [sys.executable, "-m", "bench.mesh_sum_rank"], cwd=ROOT,
        env=clean_environment(os.environ, board.folder), stdin=pipe, stdout=pipe, stderr=pipe,
        text=True,
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _write(process: subprocess.Popen[str], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"no port: {process.communicate()[1][-400:]}")
    return line
