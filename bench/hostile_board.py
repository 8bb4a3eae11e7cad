"""Let-in boards that lie in every message they can send, while sessions of others run."""

from __future__ import annotations

import json
import subprocess
import unicodedata
from collections import Counter
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.recovery_answers import Answers
from bench.recovery_hostile import daemons_mb, hangs, start_attack, targets_of
from bench.report import Measured
from picoedge.mesh.identity.roster import RosterFile
from picoedge.store.pack.reader import Pack

TARGETS = 2  # the boards of the sessions; the third is the hostile one, without a daemon
PATIENCE = (False, True)  # of each of the two that lie: see `hostile_guest.py`
KIND = Kind(TARGETS, (512 << 20,), guests=len(PATIENCE))
SECONDS, ATTACK_S = 60.0, 900.0
SETTLED_S = 5.0  # for what was sent last to be read, and for its memory to be given back
LOG_BYTES = 64 << 10  # of a minute: what a hostile board may have a daemon write


def hostile_board(models: MeshModels, rounds: int) -> list[Measured]:
    """Sessions harmed (a log with raw characters or too long counts as one), and growth in MB.

    Growth is of anonymous memory, from after the first answer: daemons have done all of their work.
    """
    with cluster(KIND, models.smollm2(), models.folder, beside=1) as boards:
        answers = Answers(boards, tokens=64)
        answers.answer()
        boards.hub.run(["sleep", str(SETTLED_S)])
        before = daemons_mb(boards)
        attacks = [_start(boards, number) for number in range(len(PATIENCE))]
        harmed = done = 0
        why: list[str] = []
        while done == 0 or any(attack.poll() is None for attack in attacks):
            done += 1
            told = _harm(answers)
            harmed, why = harmed + bool(told), [*why, told] if told else why
        sent = sum(map(_ended, attacks), Counter[str]())
        crashed = sum(process.poll() is not None for process in boards.daemons)
        if crashed:
            why.insert(0, f"{[p.poll() for p in boards.daemons]} {boards.logs()}")
        hung = 0 if crashed else hangs(boards)
        boards.hub.run(["sleep", str(SETTLED_S)])
        grown = [b - a for a, b in zip(before, daemons_mb(boards), strict=True)]
        logs = sum(map(is_harmed, boards.boards))
    value = harmed + crashed + hung + logs
    note = (
        f"{sum(sent.values()) - sent['bytes']} messages, {sent['bytes'] / 1e6:.0f} MB over "
        f"{sent['connections']} connections in {SECONDS:.0f} s; {crashed} crashes, {hung} hangs, "
        f"{logs} logs with raw or too many words, {harmed} of {done} sessions harmed {why[:3]}"
    )
    raw = {"sent": sent, "grown_mb": grown, "sessions": done, "why": why}
    grown_mb = max(grown)
    return [
        Measured("hostile_board", value, (float(value),), raw, note),
        Measured("hostile_board_mb", grown_mb, tuple(grown), raw, "of the daemon that grew most"),
    ]


def _harm(answers: Answers) -> str:
    """What was wrong with a session, in a few words; "" if nothing was."""
    try:
        told = answers.answer()
    except BenchError as error:
        return str(error)[:300]
    if told.losses:
        return f"lost {told.losses}"
    return "" if answers.is_same(told) else "another text"


def _start(boards: Cluster, number: int) -> subprocess.Popen[str]:
    attacker = boards.lab.boards[TARGETS]
    request = {
        "targets": targets_of(boards),
        "secret": boards.guests[number].secret, "seconds": SECONDS, "patient": PATIENCE[number],
        "roster": RosterFile(boards.hub.folder / "cluster").roster.to_json(),
        "pack": Pack.open(boards.pack_on(boards.hub)).identity,
    }  # fmt: skip
    return start_attack(boards, attacker, "bench.hostile_guest", request)


def _ended(process: subprocess.Popen[str]) -> Counter[str]:
    out, err = process.communicate(timeout=ATTACK_S)
    if process.returncode:
        raise BenchError(f"the hostile board ended with {process.returncode}: {err[-400:]}")
    return Counter(json.loads(out.splitlines()[-1])["sent"])


def is_harmed(board: Any) -> bool:
    """Whether a daemon's log has raw characters, a traceback, or no end."""
    text = (board.folder / "daemon.log").read_text(errors="surrogateescape")
    unseen = {unicodedata.category(each) for each in text if each != "\n"} & {"Cc", "Cf", "Cs"}
    return bool(unseen) or "Traceback" in text or len(text) > LOG_BYTES
