"""Networks as they are: workers that cannot reach each other, firewalls with one port open."""

from __future__ import annotations

import statistics
import subprocess
import time
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import ANSWER_S, Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.mesh_speed import bare, quotient
from bench.paced import PROMPT
from bench.report import Measured
from bench.speed import by_turns
from picoedge.mesh.addresses import DEFAULT_PORT

THREE = Kind(3, (1 << 30,))
TOKENS = 64
OVER_ALL = ("--cluster", "--boards", "3")


def apart(models: MeshModels, rounds: int) -> list[Measured]:
    """Seconds from a command to its first token, and boards used, two workers' link being cut.

    It is cut just before the command, so that no board knows of it. The worst of all rounds.
    """
    seconds, used = [], []
    with cluster(THREE, models.smollm2(), models.folder) as boards:
        boards.generate(PROMPT, 4)
        link = boards.lab.link(1, 2)
        for _ in range(rounds):
            link.cut()
            seconds.append(_first_token_s(boards))
            used.append(int(boards.generate(PROMPT, 4)["boards"]))
            link.heal()
            boards.await_all()
    note = f"median {statistics.median(seconds):.1f} s"
    raw: dict[str, Any] = {"seconds": seconds, "boards": used}
    return [
        Measured("apart_s", max(seconds), tuple(seconds), raw, note),
        Measured("apart_boards", min(used), tuple(map(float, used)), raw, ""),
    ]


def _first_token_s(boards: Cluster) -> float:
    """Until the first bytes of an answer, with the start of the command. Raises BenchError."""
    words = [word for word in boards.session(boards.hub, PROMPT, 4, *OVER_ALL) if word != "--json"]
    began = time.monotonic()
    process = boards.hub.start(
        words,
        env=boards.environment(boards.hub),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    took_s = time.monotonic() - began
    _, said = process.communicate(timeout=ANSWER_S)
    if process.returncode or not first:
        raise BenchError(f"ended with {process.returncode}: {said.decode()[-600:]}")
    return took_s


def one_port(models: MeshModels, rounds: int) -> list[Measured]:
    """Boards used where a firewall lets in the daemons' port alone; tokens/s ÷ without it."""
    with cluster(THREE, models.smollm2(), models.folder) as boards:

        def behind_a_firewall() -> Any:
            for board in boards.boards:
                board.close_ports(DEFAULT_PORT)
            try:
                return boards.generate(PROMPT, TOKENS)
            finally:
                for board in boards.boards:
                    board.open_ports()

        behind_a_firewall()
        turns = {"one": behind_a_firewall, "all": lambda: boards.generate(PROMPT, TOKENS)}
        taken = by_turns(turns, rounds)
    used = [int(report["boards"]) for report in taken["one"]]
    raw = {"one": bare(taken["one"])}
    return [
        Measured("one_port_boards", min(used), tuple(map(float, used)), raw, ""),
        quotient("one_port_ratio", "decode_tok_s", taken["one"], taken["all"]),
    ]
