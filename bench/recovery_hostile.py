"""Random and mutated frames, from outside and from a board that is let in, while sessions run."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.recovery_answers import Answers, worker_of
from bench.recovery_pull import public_key
from bench.report import Measured
from hw.lab import Board

FRAMES_A_ROUND = 20_000  # half from outside, half from a peer; five rounds: 100,000
TARGETS = 2  # the boards of the session; the third is the attacker, without a daemon
# A board that misbehaves is kept out after a while: it takes many to go on.
KIND = Kind(TARGETS, (512 << 20,), guests=100)
ATTACK_S = 900.0


def hostile_frames(models: MeshModels, rounds: int) -> list[Measured]:
    """Crashes, hangs and sessions harmed; how much daemons have grown is in the note."""
    with cluster(KIND, models.smollm2(), models.folder, beside=1) as boards:
        answers = Answers(boards, tokens=64)
        attacker = boards.lab.boards[TARGETS]
        before = daemons_mb(boards)
        attacks = [_start(boards, attacker, way, rounds) for way in ("outside", "peer")]
        harmed, done = sessions_during(answers, attacks)
        sent = [_ended(process) for process in attacks]
        crashed = [p.pid for p in boards.daemons if p.poll() is not None]
        hung = 0 if crashed else hangs(boards)
        grown = [b - a for a, b in zip(before, daemons_mb(boards), strict=True)]
        models.keep("hostile_frames", boards.peaks())
    value = len(crashed) + hung + harmed
    short = [each for each in sent if each["frames"] < FRAMES_A_ROUND * rounds // 2]
    if short:
        raise BenchError(f"fewer frames than there were to be: {short}")
    frames = sum(each["frames"] for each in sent)
    note = (
        f"{frames} frames, {len(crashed)} crashes, {hung} hangs, {harmed} of {done} sessions "
        f"harmed; daemons grew by {max(grown):.1f} MB"
    )
    raw = {"sent": sent, "grown_mb": grown, "sessions": done}
    return [Measured("hostile_frames", value, (float(value),), raw, note)]


def _start(boards: Cluster, attacker: Board, way: str, rounds: int) -> subprocess.Popen[str]:
    request = {
        "way": way, "targets": targets_of(boards), "frames": FRAMES_A_ROUND * rounds // 2,
        "secrets": [guest.secret for guest in boards.guests],
    }  # fmt: skip
    return start_attack(boards, attacker, "bench.recovery_attack", request)


def targets_of(boards: Cluster) -> list[list[Any]]:
    """Address, port and key of each board's daemon."""
    return [[board.address, 7433, public_key(board)] for board in boards.boards]


def start_attack(
    boards: Cluster, attacker: Board, module: str, request: dict[str, Any]
) -> subprocess.Popen[str]:
    """Start `python -m module` on a board, which reads `request`, a line of JSON."""
    process = attacker.start(
        boards.command(attacker, module),
        env=boards.environment(attacker), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.close()
    process.stdin = None
    return process


def sessions_during(answers: Answers, attacks: list[subprocess.Popen[str]]) -> tuple[int, int]:
    """(sessions harmed, sessions) until the attacks are over; workers are attacked, too."""
    harmed = done = 0
    while done == 0 or any(process.poll() is None for process in attacks):
        done += 1
        poking = threading.Thread(target=poke, args=(answers.boards,))
        poking.start()
        try:
            told = answers.answer()
            harmed += bool(told.losses) or not answers.is_same(told)
        except BenchError:
            harmed += 1
        poking.join()
    return harmed, done


def poke(boards: Cluster) -> None:
    """Garbage to the port of a session's worker, from the board beside it."""
    worker = None
    for _ in range(2000):
        worker = worker_of(boards.boards[1])
        ports = listening(worker) - {7433} if worker else set()
        if ports:
            break
        threading.Event().wait(0.002)
    else:
        return
    attacker, target = boards.lab.boards[TARGETS], boards.boards[1]
    request = {
        "way": "outside", "frames": 300,
        "targets": [[target.address, port, ""] for port in sorted(ports)],
    }  # fmt: skip
    attacker.run(
        boards.command(attacker, "bench.recovery_attack"), env=boards.environment(attacker),
        stdin=json.dumps(request) + "\n",
    )  # fmt: skip


def listening(pid: int) -> set[int]:
    """Ports that are listened on in a process's namespace."""
    try:
        rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return set()
    fields = (row.split() for row in rows)
    return {int(each[1].rpartition(":")[2], 16) for each in fields if each[3] == "0A"}


def _ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=ATTACK_S)
    if process.returncode:
        raise BenchError(f"the attacker ended with {process.returncode}: {err[-400:]}")
    sent: dict[str, Any] = json.loads(out.splitlines()[-1])
    return sent


def hangs(boards: Cluster) -> int:
    """1 where boards do not answer any more."""
    try:
        boards.await_all()
    except (BenchError, subprocess.TimeoutExpired):
        return 1
    return 0


def daemons_mb(boards: Cluster) -> list[float]:
    """Anonymous memory of every daemon; pages of files come and go."""
    return [anonymous_mb(process.pid) for process in boards.daemons]


def anonymous_mb(pid: int) -> float:
    """MB of anonymous memory that a process has; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(s.split()[1]) * 1024 / 1e6 for s in lines if s.startswith("RssAnon")), 0.0)
