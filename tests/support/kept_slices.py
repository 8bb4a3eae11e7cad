"""Sessions over two boards that keep their slices, and what a board has kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster_boards import BoardOf, ClusterOf, Running, last_json, until


@contextmanager
def keeping_cluster(folder: Path, pack: Path) -> Iterator[ClusterOf]:
    """Two boards that have the pack and keep slices for ten minutes; they end with the block."""
    made = ClusterOf(folder / "cluster", 2)
    made.shelve(pack)
    for board in made.boards:
        board.keep = "10m"
    try:
        made.start()
        yield made
    finally:
        made.end()


def ask(hub: BoardOf, *extra: str) -> Running:
    """A greedy answer of six tokens over both boards, on its way."""
    (pack,) = hub.shelf.glob("*.pico")
    return hub.run(
        "generate", pack, "--raw", "-p", "the quick", "-n", "6", "--temperature", "0", "--json",
        "--ignore-eos", "--cluster", "--boards", "2", *extra,
    )  # fmt: skip


def answered(hub: BoardOf, *extra: str) -> dict[str, Any]:
    """The report of an answer that has ended."""
    running = ask(hub, *extra)
    assert running.wait() == 0, running.err.text
    return last_json(running)


def uses(board: BoardOf) -> list[str]:
    """What the memory of a board is used for."""
    return [use["use"] for use in board.seen()[board.name]["uses"]]


def kept_on(board: BoardOf) -> int:
    """The process that keeps a slice on a board, once it does."""

    def is_kept() -> bool:
        seen = board.seen()[board.name]
        return seen["does"] == "free" and [use["use"] for use in seen["uses"]] == ["kept"]

    until(is_kept, f"{board.name} keeps its slice")
    (worker,) = board.workers()
    return worker.pid
