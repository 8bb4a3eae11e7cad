"""Answers over boards of which some are lost, with the messages about them."""

from __future__ import annotations

from pathlib import Path

from cluster_boards import BoardOf, ClusterOf, Running

PROMPT = "Once upon a time there was a board that"
COUNT = 50  # tokens of an answer
SOME_WORDS = r"\w+ \w+ \w+ \w+"
HOW = ["--temperature", "0", "--raw", "--ignore-eos", "-t", "1"]
# The message about a lost board.
LAST_REPORT = r"; \d\.\d s ago it reported: (loading|computing|waiting for work), \w+; going on"


def answer(board: BoardOf, pack: Path, *more: str) -> Running:
    """A greedy answer of COUNT tokens."""
    return board.run("generate", pack, "-p", PROMPT, "-n", str(COUNT), *HOW, *more)


def begin(cluster: ClusterOf, pack: Path, *more: str) -> Running:
    """An answer over all boards, some words of which are there."""
    shares = ",".join("1" for _ in cluster.boards)  # whatever was measured on a busy machine
    session = answer(cluster[1], pack, "--cluster", "-ts", shares, *(more or ("-c", "512")))
    session.out.wait(SOME_WORDS)
    return session


def check_told_and_undisturbed(session: Running, told: str, undisturbed: str) -> None:
    """The loss is told, and the answer goes on as it would have."""
    session.err.wait(told + LAST_REPORT, 8.0)
    assert session.wait() == 0, session.err.text
    assert session.out.text == undisturbed, session.err.text
