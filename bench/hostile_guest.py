"""A let-in board that lies, on a board of the lab: `python -m bench.hostile_guest`.

The request is on stdin. With its own key it says hello to each daemon, and then sends every kind of
message, of all sizes up to the limit: sound ones that lie about other boards, ones with escape
sequences in every text, malformed ones. A patient board sends only what no daemon cuts it
off for, and slowly enough. The last line is how many of each were sent.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import zmq

from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transport.curve import SocketBounds, configure_client
from picoedge.mesh.transport.limits import CONTROL_BYTES
from picoedge.mesh.transport.messages import control

ESCAPE = "\x1b[2J\x1b]0;owned\x07\r\nerror: b1 is lost\u202e"
SIZES = (0, 1000, 64 << 10, CONTROL_BYTES - 2000)
PACE_BYTES_PER_S = 8 << 20  # more than a daemon believes of a board: it is cut off now and then
PATIENT_BYTES_PER_S = 1 << 20  # half of what it believes
# Sound whatever their texts are; a patient board asks nothing else.
SOUND = (
    "mesh-state", "board-facts", "ping", "roster", "shards-offer", "shards-read", "pack-offer",
    "job-release", "unheard-of",
)  # fmt: skip
ANSWERS_MS, RECONNECT_S = 1, 0.05
Message = tuple[str, dict[str, Any]]


class Guest:
    """Makes messages about the boards `keys` at `addresses`, of the roster `roster`."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.dice = random.Random(0)
        self.keys: list[str] = [key for _, _, key in request["targets"]]
        self.addresses = [f"{host}:{port}" for host, port, _ in request["targets"]]
        self.roster, self.pack = request["roster"], request["pack"]
        self.is_patient: bool = request["patient"]
        self.invented = [KeyPair.new().public for _ in range(900)]
        self.incarnation, self.sequence = 1, 0

    def hello(self) -> Message:
        """That it listens where others do; another process each time."""
        if not self.is_patient:
            self.incarnation, self.sequence = self.dice.getrandbits(62), 0
        addresses = [*self.addresses, *(self._address() for _ in range(6))]
        return "hello", {
            "name": self.dice.choice(["guest", "b1", *([] if self.is_patient else [ESCAPE[:32]])]),
            "incarnation": self.incarnation,
            "port": 7433, "addresses": addresses[:8], "digest": "x", "epoch": 0,
        }  # fmt: skip

    def _text(self, nbytes: int) -> str:
        """Of so many bytes in JSON, or somewhat fewer; half of them of escape sequences."""
        if self.dice.random() < 0.5:
            return "x" * nbytes
        return ESCAPE * (nbytes // len(json.dumps(ESCAPE)))

    def _address(self) -> str:
        return f"10.77.{self.dice.randrange(256)}.{self.dice.randrange(1, 255)}:7433"

    def beat(self, nbytes: int) -> Message:
        """A report of itself that is large, deep, or full of escapes."""
        self.sequence += 1
        texts = ("does", "how", "for", "model", "stalled_on", "transport")
        state: dict[str, Any] = dict.fromkeys(texts, self._text(nbytes // len(texts)))
        state |= {
            "work": {"tokens": -1, "compute_s": 1e300},
            "attention": [5, 1],
            "queue_length": -9,
        }
        if nbytes > 1000 and self.dice.random() < 0.5:
            most = 3000 if self.is_patient else nbytes // 5
            state = {"work": {"tokens": [[]] * min(most, nbytes // 5)}}
        if self.dice.random() < 0.3:
            state |= {f"field {number}": 1 for number in range(40)}
        if self.dice.random() < 0.3:
            state["stalled_on"] = "disk"
        return "beat", {
            "incarnation": self.incarnation, "sequence": self.sequence,
            "digest": str(self.sequence)[-60:], "state": state,
        }  # fmt: skip

    def peers(self, nbytes: int) -> Message:
        """Wrong addresses of the others, and of unknown keys."""
        known = {key: [self._address() for _ in range(4)] for key in self.keys}
        invented = self.invented[: nbytes // 300]
        return "peers", {"boards": known | {key: [self._address()] * 8 for key in invented}}

    def gossip(self, nbytes: int) -> Message:
        """The roster as it is, or with entries that the cluster did not sign."""
        entry = self.roster["entries"][0]
        count = 0 if self.is_patient else nbytes // 500
        forged = [{**entry, "public": key} for key in self.invented[:count]]
        entries = sorted([*self.roster["entries"], *forged], key=lambda each: each["public"])
        return "gossip", {"roster": {**self.roster, "entries": entries}}

    def requests(self, nbytes: int) -> list[Message]:
        """What a hub or a command would ask, with long texts and escapes where a text may be."""
        text = self._text(nbytes // 3)
        spec = {"session": text, "epoch": 1, "seats": [{"key": self.keys[0], "name": text}]}
        item = {"pack": self.pack, "item": "head/head.001", "offset": 0, "bytes": 128 << 10}
        return [
            ("mesh-state", {"from": self.dice.randrange(5)}), ("board-facts", {"x": text}),
            ("ping", {"bytes": 512 << 10}), ("roster", {"x": text}),
            ("shards-offer", {"pack": self.pack}), ("shards-read", item),
            ("shards-offer", {"pack": "0" * 64}), ("pack-offer", {"folder": text[:4000]}),
            ("job-reserve", {"job": "inference"}),
            ("job-start", {"job": "inference", "spec": spec}),
            ("job-start", {"job": text, "spec": spec}), ("job-release", {"run": text}),
            ("job-release", {}), ("relay-open", {}), ("relay-send", {"data": "A" * (nbytes // 2)}),
            ("acknowledge", {"of": "job-report"}), ("leave", {"incarnation": 7}),
            ("join", {"public": self.keys[0], "name": text}), ("reply", {"id": 1, "x": text}),
            ("error", {"id": 2, "type": text[:99], "message": text, "hint": text}),
            ("job-ended", {"message": text, "board": "b2", "key": self.keys[0]}),
            ("job-report", {"stage": text}), ("job-listens", {"port": 1}),
            ("unheard-of", {"x": text}),
        ]  # fmt: skip

    def messages(self) -> Iterator[Message]:
        """Messages without end, each connection's first one a hello."""
        yield self.hello()
        while True:
            nbytes = self.dice.choice(SIZES)
            yield self.beat(nbytes)
            yield self.dice.choice((self.peers, self.gossip))(nbytes)
            requests = self.requests(nbytes)
            if self.is_patient:
                requests = [each for each in requests if each[0] in SOUND]
            yield self.dice.choice(requests)
            if self.dice.random() < 0.05:
                yield self.hello()


def frames_of(message: Message, guest: Guest) -> list[bytes]:
    """A message with an `id` mostly; one in fifty is malformed."""
    (kind, body), dice = message, guest.dice
    is_told = kind in ("beat", "peers", "gossip", "acknowledge", "reply", "error")
    frames = control(kind, body if is_told else {**body, "id": dice.randint(1, 1 << 20)}, 1)
    if dice.random() < 0.02 and not guest.is_patient:
        return [frames[0], frames[1][: len(frames[1]) // 2]]
    return frames


def attack(
    guest: Guest, context: Any, secret: str, target: list[Any], end_s: float
) -> Counter[str]:
    """Messages to one daemon over one connection, until it is cut or the time is up."""
    host, port, key = target
    sent: Counter[str] = Counter()
    with context.socket(zmq.DEALER) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.IMMEDIATE, 1)
        bounds = SocketBounds(frame_bytes=1 << 30, messages=64)
        configure_client(made, KeyPair.of_secret(secret), key, bounds)
        made.connect(f"tcp://{host}:{port}")
        for message in guest.messages():
            frames = frames_of(message, guest)
            if time.monotonic() > end_s or not made.poll(1000, zmq.POLLOUT):
                break
            while made.poll(ANSWERS_MS, zmq.POLLIN):
                made.recv_multipart(zmq.NOBLOCK)
                sent["answers"] += 1
            try:
                made.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                break
            sent[message[0]] += 1
            sent["bytes"] += len(frames[1])
            rate = PATIENT_BYTES_PER_S if guest.is_patient else PACE_BYTES_PER_S
            time.sleep(len(frames[1]) / rate)
    return sent


def main() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.readline())
    guest, sent = Guest(request), Counter[str]()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    end_s = time.monotonic() + request["seconds"]
    while time.monotonic() < end_s:
        target = guest.dice.choice(request["targets"])
        sent += attack(guest, context, request["secret"], target, end_s)
        sent["connections"] += 1
        time.sleep(RECONNECT_S)
    context.destroy(linger=0)
    print(json.dumps({"sent": dict(sent)}))


if __name__ == "__main__":
    main()
