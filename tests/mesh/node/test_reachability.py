"""What a daemon says of its ways to another board, and whom it tries."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from mesh_nodes import LOOPBACK, Change, Running, found, fresh_context, running

from picoedge.errors import MeshError
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.node import reachability
from picoedge.mesh.node.reachability import Reachability


def reach(node: Running, key: str) -> dict[str, Any]:
    with fresh_context() as context, node.client(context, node.identity.keys) as client:
        return client.ask("reach-board", {"key": key}, 20.0)


def test_a_board_that_is_reached_opens_a_port_of_its_workers(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    with socket.socket() as taken:
        taken.bind((LOOPBACK.host, 0))
        port = taken.getsockname()[1]
    ada = Running(first)
    bob = Running(second, ada.address)
    made = [Reachability(ada.node), Reachability(bob.node, (port,))]
    with running(ada, bob):
        ada.wait_for(bob, Change.JOINED)
        answer = reach(ada, bob.key)
        assert {"address": str(bob.address), "why": ""} in answer["daemon"]
        assert answer["worker"] == {"address": f"{LOOPBACK.host}:{port}", "why": ""}
        assert reach(ada, bob.key)["worker"] == answer["worker"]  # the same is open still
        for node, each in zip((ada, bob), made, strict=True):
            node.do(each.close)


def test_a_board_without_a_free_port_names_none(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    bob = Running(second, ada.address)
    Reachability(ada.node)
    Reachability(bob.node, (ada.address.port,))
    with running(ada, bob):
        ada.wait_for(bob, Change.JOINED)
        assert "worker" not in reach(ada, bob.key)


def test_a_board_that_is_not_there_is_tried_where_it_was(tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    Reachability(ada.node)
    with socket.socket() as silent, running(ada):
        silent.bind((LOOPBACK.host, 0))
        refusing = Address(*silent.getsockname())
        ada.do(lambda: ada.node.peers.hint(second.keys.public, refusing))
        answer = reach(ada, second.keys.public)
    assert answer["daemon"] == [{"address": str(refusing), "why": "nothing listens there"}]
    assert "worker" not in answer


def test_only_boards_of_the_cluster_are_tried_and_not_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    Reachability(ada.node)
    with running(ada):
        for key in (ada.key, KeyPair.new().public):
            with pytest.raises(MeshError, match="no other board"):
                reach(ada, key)
        monkeypatch.setattr(reachability, "MOST_AT_ONCE", 0)
        with pytest.raises(MeshError, match="tries to reach others already"):
            reach(ada, second.keys.public)
