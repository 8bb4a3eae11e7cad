"""The daemon's network half: who is let in, who hears whom, and what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from mesh_nodes import Running, found, running

from picoedge.errors import AccessError, BoardLostError, MeshError
from picoedge.mesh.keys import KeyPair
from picoedge.mesh.membership import What


@pytest.fixture
def context() -> Iterator[Any]:
    made: Any = zmq.Context()
    yield made
    made.destroy(0)


def test_boards_greet_and_hear_each_other(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob = Running(second, ada.address)
    bob.node.peers.state = lambda: {"waiting": "disk"}
    with running(ada, bob):
        ada.wait_for(bob, What.SLOWED)
        bob.wait_for(ada, What.JOINED)


def test_an_allowed_key_is_answered(tmp_path: Path, context: Any) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    ada.node.on("echo", lambda peer, body: {"from": str(peer), "text": body["text"]})
    with running(ada), ada.caller(context, second.keys) as caller:
        answer = caller.ask("echo", {"text": "ä"})
        assert (answer["from"], answer["text"]) == (second.keys.public, "ä")
        with pytest.raises(MeshError, match="board ada: this board knows nothing of 'sing'"):
            caller.ask("sing")


def test_an_unknown_key_gets_nothing(tmp_path: Path, context: Any) -> None:
    ada = Running(*found(tmp_path, "ada"))
    with running(ada), ada.caller(context, KeyPair.new()) as caller, pytest.raises(AccessError):
        caller.ask("roster")


def test_nobody_there(tmp_path: Path, context: Any) -> None:
    ada = Running(*found(tmp_path, "ada"))
    ada.end()
    with (
        ada.caller(context, ada.identity.keys) as caller,
        pytest.raises(BoardLostError, match=r"ada at 127.*nothing listens.*picoedge run"),
    ):
        caller.ask("roster", timeout_s=0.2)
