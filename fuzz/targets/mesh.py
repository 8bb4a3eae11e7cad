"""Control messages of other boards: each reader, and all handlers of a daemon."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import mutate_json, mutate_value, written
from fuzz.target import Run, Target
from fuzz.targets.board_messages import (
    BOOK,
    CHUNK,
    FACTS,
    HELLO,
    KEYS,
    MESH,
    MESSAGES,
    NAMES,
    OFFERED,
    SPEC,
    STATE,
)
from picoedge.cluster.spec import spec_from_json
from picoedge.daemon.board import BoardService
from picoedge.daemon.memory.board_memory import BoardOptions
from picoedge.jobs.relay import read_chunk
from picoedge.jobs.status import read_mesh, read_work
from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.admission import found_cluster
from picoedge.mesh.identity.identity import load_signing_key
from picoedge.mesh.identity.roster import RosterFile
from picoedge.mesh.node.finder import read_addresses
from picoedge.mesh.node.node import Node
from picoedge.mesh.node.peers import read_hello
from picoedge.mesh.transfer.donor import Donor, unpack_bits
from picoedge.mesh.transfer.donor_client import read_offer
from picoedge.mesh.transfer.pack_provider import PackShelf
from picoedge.mesh.transport.frames import (
    VERSION,
    Header,
    Kind,
    pack,
)
from picoedge.mesh.transport.limits import DEFAULT_LIMITS
from picoedge.mesh.transport.messages import Dialect, control, error_of
from picoedge.mesh.transport.server import Sender


def reader(read: Callable[[dict[str, Any]], object]) -> Callable[[Path], Run]:
    """A target whose input is the JSON of a control message."""

    def open_(folder: Path) -> Run:
        header = pack(Header(Kind.CONTROL), VERSION)

        def run(data: bytes) -> None:
            read(Dialect().read([header, data])[1])

        return run

    return open_


def message(
    name: str,
    read: Callable[[dict[str, Any]], object],
    body: Any,
    modules: tuple[str, ...],
    *others: Any,
) -> Target:
    """A kind of control message, and what reads its body. `others`: bodies as sound."""
    bodies = (body, *others)
    samples = [control("message", each)[1] for each in bodies]

    def mutate(rng: Random, given: Sequence[bytes]) -> bytes:
        if rng.randrange(8) == 0:
            return mutate_json(rng, rng.choice(given))
        changed = mutate_value(rng, rng.choice(bodies), NAMES)
        return written(rng, {"kind": "message", "body": changed})

    return Target(name, reader(read), lambda: samples, mutate, modules, weight=6)


# -- a whole daemon ------------------------------------------------------------------------------


def new_node(folder: Path) -> Node:
    """The network of a daemon in a cluster of two boards; nothing listens for long."""
    import zmq

    identity = found_cluster(folder / "home", "desk", "b0")
    rosters = RosterFile(identity.folder)
    signing = load_signing_key(identity.folder)
    rosters.update(lambda roster: roster.with_allow(signing, KEYS[1].public, "b1"))
    context = zmq.Context()
    node = Node(context, identity, rosters, Address("127.0.0.1", 0), log=lambda line: None)
    atexit.register(context.destroy, linger=0)
    atexit.register(node.close)
    return node


def _daemon(folder: Path) -> Run:
    """Every handler of a daemon's network, called as the network would."""
    node = new_node(folder)
    options = BoardOptions(1 << 30, folder / "shelf")
    (folder / "shelf").mkdir()
    BoardService(node, options, lambda: FACTS, lambda pack_id: None)
    for kind, handler in Donor(PackShelf([options.shelf]).find).handlers().items():
        node.rpc.on(kind, handler)
    header, routes = pack(Header(Kind.CONTROL), VERSION), [b"\0aaaa", b"\0bbbb"]
    handlers = node.rpc._handlers

    def run(data: bytes) -> None:
        kind, body = Dialect().read([header, data])
        handler = handlers.get(kind)
        if handler is not None:
            sender = Sender(KEYS[1].public, routes[len(data) % 2], "10.0.0.3")
            result = handler(sender, body)
            if isinstance(result, dict):
                control("reply", result)

    return run


def _daemon_samples() -> list[bytes]:
    return [control(kind, body)[1] for kind, body in MESSAGES.items()]


def _mutated_message(rng: Random, samples: Sequence[bytes]) -> bytes:
    if rng.randrange(10) == 0:
        return mutate_json(rng, rng.choice(samples))
    kind = rng.choice(list(MESSAGES))
    body = MESSAGES[kind]
    changed = mutate_value(rng, body, NAMES) if rng.randrange(8) else body
    return written(rng, {"kind": kind, "body": changed})


def _bits(body: dict[str, Any]) -> None:
    offer = read_offer(body)
    if offer.held is not None:
        unpack_bits(offer.held, offer.items)


MESSAGES_OF_BOARDS = (
    message(
        "hello",
        read_hello,
        HELLO,
        (
            "mesh/transport/messages.py:Dialect.read,read_control,_version_of,_parse,_depth,_unique,_integer,_finite,_refuse_constant",
        ),
    ),
    message(
        "addresses",
        read_addresses,
        BOOK,
        ("mesh/addresses.py:parse_address,_split,_is_host,_is_numeric",),
    ),
    message(
        "spec",
        lambda body: spec_from_json(body.get("spec", body)),
        SPEC,
        ("cluster/spec.py:spec_from_json,_rank",),
    ),
    message(
        "mesh-state",
        read_mesh,
        MESH,
        ("jobs/status.py:read_mesh,_board,_use,read_work,_text,_count",),
    ),
    message("report", read_work, STATE, ()),
    message("offer", _bits, OFFERED, ()),
    message("relay", lambda body: read_chunk(body, DEFAULT_LIMITS), CHUNK, ()),
    message("error", lambda body: error_of(body, "b1"), MESSAGES["error"], ()),
    Target("daemon", _daemon, _daemon_samples, _mutated_message, (), weight=16),
)
