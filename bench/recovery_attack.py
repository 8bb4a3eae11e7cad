"""The attacker, on a board of the lab: `python -m bench.recovery_attack`, a request on stdin.

`outside`: TCP without keys, greetings and frames of ZMTP that are random or nearly right. `peer`:
with the keys of boards that are let in, messages that are random or nearly right. The last line
is how many frames were sent, and over how many connections.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time
from typing import Any

import zmq

from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.curve import SocketBounds, configure_client
from picoedge.mesh.transport.messages import control

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + b"\x00" + bytes(31)
HELLO = b"\x04\xc8\x05HELLO\x01\x00" + bytes(72 + 8 + 80 + 32)
FRAMES_A_CONNECTION = 20
LINGER_NONE = struct.pack("ii", 1, 0)  # no port stays behind in TIME_WAIT
STALL_S, CUT_MS, PACE_MS, PACED = 60.0, 100, 1, 0.05

BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("hello", {"name": "x", "incarnation": 1, "digest": "", "addresses": [], "state": {}}),
    ("beat", {"incarnation": 1, "sequence": 1, "digest": "", "report": {}}),
    ("gossip", {"roster": {"cluster": {"name": "bench", "key": "k"}, "entries": []}}),
    ("peers", {"boards": {"k": ["127.0.0.1:1"]}}),
    ("join", {"public": "x" * 40, "name": "eve"}),
    ("mesh-state", {}), ("board-facts", {}), ("ping", {"bytes": 100}),
    ("pack-offer", {"folder": "/etc"}), ("shards-offer", {"pack": "x" * 64}),
    ("shards-read", {"pack": "x" * 64, "item": "head/head.001", "offset": 0, "bytes": 1 << 20}),
    ("job-reserve", {}), ("job-start", {"spec": {"group": "x", "epoch": 1, "ranks": []}}),
    ("job-release", {}), ("reply", {}), ("error", {"type": "x", "message": "y", "hint": "z"}),
)  # fmt: skip


def mutated(dice: random.Random, data: bytes) -> bytes:
    """Some bytes changed, and sometimes cut short or made longer."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    if dice.random() < 0.3:
        return bytes(changed[: dice.randint(0, len(changed))])
    return bytes(changed) + (dice.randbytes(dice.randint(1, 2000)) if dice.random() < 0.1 else b"")


# -- from outside ----------------------------------------------------------------------------------


def outside(targets: list[list[Any]], frames: int, dice: random.Random) -> dict[str, int]:
    """So many pieces of garbage, over as many connections as it takes."""
    sent = connections = refused = 0
    while sent < frames:
        host, port, _ = dice.choice(targets)
        try:
            with socket.create_connection((host, port), 5) as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
                connections += 1
                sent += _pour(raw, dice)
        except OSError:
            refused += 1
            if refused > frames:
                break
            time.sleep(0.001)
    return {"frames": sent, "connections": connections, "refused": refused}


def _pour(raw: socket.socket, dice: random.Random) -> int:
    """Pieces sent before the other end had enough."""
    raw.sendall(GREETING if dice.random() < 0.7 else mutated(dice, GREETING))
    for sent in range(FRAMES_A_CONNECTION):
        try:
            raw.sendall(piece(dice))
        except OSError:
            return sent
    return FRAMES_A_CONNECTION


def piece(dice: random.Random) -> bytes:
    """A frame of ZMTP, more or less."""
    kind = dice.random()
    if kind < 0.4:
        return mutated(dice, HELLO)
    if kind < 0.6:  # a length that is a lie
        return b"\x02" + struct.pack(">Q", dice.getrandbits(63)) + dice.randbytes(64)
    return dice.randbytes(dice.choice([1, 64, 1000]))


# -- from a peer -----------------------------------------------------------------------------------


def peer(
    targets: list[list[Any]], frames: int, dice: random.Random, secrets: list[str]
) -> dict[str, int]:
    """So many frames with the keys of boards that are let in: the next one's, once one is cut."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sent = connections = answers = 0
    since = time.monotonic()
    try:
        while sent < frames and time.monotonic() - since < STALL_S:
            keys = KeyPair.of_secret(secrets[connections % len(secrets)])
            connections += 1
            host, port, key = dice.choice(targets)
            with context.socket(zmq.DEALER) as made:
                made.setsockopt(zmq.LINGER, 0)
                made.setsockopt(zmq.IMMEDIATE, 1)
                configure_client(made, keys, key, SocketBounds(frame_bytes=1 << 30, messages=64))
                made.connect(f"tcp://{host}:{port}")
                done, heard = _flood(made, frames - sent, dice)
            sent, answers = sent + done, answers + heard
            since = time.monotonic() if done else since
    finally:
        context.destroy(linger=0)
    return {"frames": sent, "connections": connections, "answers": answers}


def _flood(made: zmq.Socket[bytes], frames: int, dice: random.Random) -> tuple[int, int]:
    """(frames sent, answers) until nothing goes out any more."""
    sent = answers = 0
    while sent < frames:
        event = made.poll(CUT_MS, zmq.POLLOUT | zmq.POLLIN)
        if not event:
            break
        if event & zmq.POLLIN:
            made.recv_multipart(zmq.NOBLOCK)
            answers += 1
        if event & zmq.POLLOUT:
            message = message_of(dice)
            try:
                made.send_multipart(message, zmq.NOBLOCK)
            except zmq.Again:
                continue
            sent += len(message)
            if dice.random() < PACED:  # else it may be cut with some more behind it
                made.poll(PACE_MS, zmq.POLLIN)
    return sent, answers


def message_of(dice: random.Random) -> list[bytes]:
    """A control message with something wrong, or nothing like one; now and then a sound one."""
    kind = dice.random()
    if kind < 0.2:
        return [dice.randbytes(dice.randint(0, 300)) for _ in range(dice.randint(1, 5))]
    name, body = dice.choice(BODIES)
    sound = control(name, {"id": dice.randint(0, 1 << 20), **body})
    if kind < 0.4:
        return sound
    return [mutated(dice, frame) for frame in sound]


def main() -> None:
    """Answer one request."""
    request, dice = json.loads(sys.stdin.readline()), random.Random(0)
    targets, frames = request["targets"], request["frames"]
    if request["way"] == "outside":
        print(json.dumps({"way": "outside", **outside(targets, frames, dice)}))
    else:
        print(json.dumps({"way": "peer", **peer(targets, frames, dice, request["secrets"])}))


if __name__ == "__main__":
    main()
