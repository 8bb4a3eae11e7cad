"""An empty board that pulls its slice, from one donor and from three."""

from __future__ import annotations

import json
import shutil
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.report import Measured
from bench.speed import by_turns, ratio_of_seconds, seconds_of
from hw.lab import Board, LinkShape
from picoedge.mesh.identity.identity import load_identity
from picoedge.store.pack.reader import Pack

UPLINK = 100e6 / 8
# Boards 1 to 3 give, the last one takes; a quarter of the 1.1B shape.
KIND = Kind(4, (512 << 20,), LinkShape())
ATTENTION, FFN = (0, 1), (0, 5)


def pull_three(models: MeshModels, rounds: int) -> list[Measured]:
    """Seconds from one donor ÷ from three, whose ports carry 100 Mbit/s each."""
    with cluster(KIND, models.pack(), models.folder) as boards:
        *donors, empty = boards.boards
        for donor in donors:
            donor.limit(port_bytes_per_s=UPLINK)
        shutil.rmtree(boards.pack_on(empty))
        identity = Pack.open(models.pack()).identity
        taken = by_turns(
            {
                "one": lambda: pulled(boards, identity, 1),
                "three": lambda: pulled(boards, identity, 3),
            },
            max(1, rounds // 2),
        )
        models.keep("pull_three", boards.peaks())
    one, three = (seconds_of(taken[name]) for name in ("one", "three"))
    note = f"{taken['one'][0]['bytes'] / 1e6:.0f} MB: {one:.1f} s from one, {three:.1f} s"
    return [ratio_of_seconds("pull_three", taken, "one", "three", note)]


def public_key(board: Board) -> str:
    """The board's key."""
    return load_identity(board.folder / "cluster").keys.public


def pulled(boards: Cluster, identity: str, donors: int) -> dict[str, Any]:
    """Seconds and bytes of one pull into an empty folder."""
    *others, empty = boards.boards
    target = empty.folder / "pulled.pico"
    request = {
        "target": str(target), "identity": identity, "attention": ATTENTION, "ffn": FFN,
        "donors": [
            [board.name, f"{board.address}:7433", public_key(board)] for board in others[:donors]
        ],
    }  # fmt: skip
    done = empty.run(
        boards.command(empty, "bench.recovery_pulling"),
        env=boards.environment(empty), stdin=json.dumps(request) + "\n", timeout_s=300,
    )  # fmt: skip
    shutil.rmtree(target, ignore_errors=True)
    if done.returncode:
        raise BenchError(f"a pull ended with {done.returncode}: {done.stderr[-500:]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
