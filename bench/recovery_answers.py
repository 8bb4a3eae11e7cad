"""An answer of SmolLM2 over three boards that something happens to on its way."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import ANSWER_S, Cluster, Kind
from bench.texts import PROMPTS
from hw.lab import Board

PROMPT, TOKENS = PROMPTS[0], 160
KIND = Kind(3, (512 << 20,), n_ctx=512)
# Of the time that decoding takes undisturbed: neither its first moment nor its last.
EARLIEST, LATEST = 0.1, 0.8


@dataclass
class Told:
    """How an answer went: its report, when it began and ended, and when the blow fell."""

    report: dict[str, Any]
    ended: float
    worker_seen: float = 0.0
    blow: float = 0.0

    @property
    def losses(self) -> list[dict[str, Any]]:
        """Boards that the hub gave up, each with the time of its own clock."""
        found = (self.report.get("cluster") or {}).get("losses")
        return list(found or [])

    @property
    def is_struck_midway(self) -> bool:
        """Whether the blow fell after the first token."""
        return self.blow > self.ended - END_S - self.decode_s

    def timeline(self) -> dict[str, Any]:
        """Seconds from when its workers began, and how it ended."""
        return {
            "blow_s": self.blow - self.worker_seen,
            "decode_s": self.decode_s,
            "ended_s": self.ended - self.worker_seen,
            "tokens": len(self.report["tokens"]),
            "finish": self.report.get("finish_reason"),
            "error": self.report.get("error"),
        }

    @property
    def decode_s(self) -> float:
        """Seconds of decoding."""
        return float(self.report["s_per_token"]) * (len(self.report["tokens"]) - 1)


@dataclass
class Answers:
    """Answers of one cluster, all to the same prompt. `calm` is the undisturbed one."""

    boards: Cluster
    prompt: str = PROMPT
    tokens: int = TOKENS
    extra: tuple[str, ...] = ()
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        self.answer()  # slices and probes are there from now on
        self.calm = self.answer()
        if self.calm.losses:
            raise BenchError(f"boards were lost undisturbed: {self.calm.losses}")

    def answer(self, blow: Callable[[], None] | None = None) -> Told:
        """An answer; `blow` falls at a random moment of its decoding. Raises BenchError."""
        hub = self.boards.hub
        wanted = ("--cluster", "--boards", str(len(self.boards.boards)), *self.extra)
        process = hub.start(
            self.boards.session(hub, self.prompt, self.tokens, *wanted),
            env=self.boards.environment(hub), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            seen = self._await_worker(process)
            fell = self._wait_and_strike(seen, blow) if blow else 0.0
            out, err = process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"an answer hangs\n{self.boards.logs()}") from error
        finally:
            process.kill()
            process.wait()
        ended = time.time()
        try:
            report = json.loads(out.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise BenchError(f"no answer: {err[-500:]}\n{self.boards.logs()}") from None
        return Told(report, ended, seen, fell)

    def _await_worker(self, process: subprocess.Popen[Any]) -> float:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if all(worker_of(board) for board in self.boards.boards[1:]):
                return time.time()
            time.sleep(0.002)
        return time.time()

    def _wait_and_strike(self, seen: float, blow: Callable[[], None]) -> float:
        """As long after the workers began as decoding was under way when nothing happened."""
        calm = self.calm
        part = self.dice.uniform(EARLIEST, LATEST)
        before = calm.ended - calm.worker_seen - calm.decode_s - END_S
        time.sleep(max(0.0, seen + before + part * calm.decode_s - time.time()))
        fell = time.time()
        blow()
        return fell

    def is_same(self, told: Told) -> bool:
        """Whether it says what the undisturbed one says."""
        return bool(told.report["tokens"] == self.calm.report["tokens"])


END_S = 0.1  # from the last token to a process's end


def worker_of(board: Board) -> int | None:
    """The process of a board's part in a session."""
    for pid in board.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"picoedge.cluster.worker" in words:
            return pid
    return None
