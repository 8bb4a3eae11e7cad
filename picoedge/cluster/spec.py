"""What a hub asks of a board: its seat in a session, as plain values that are checked.

{"session": "6f0c…", "epoch": 7, "pack": {"id": "9a…", "name": "smollm2-135m"},
 "rank": 1, "seats": [{"key": "…", "name": "desk", "attention": [0, 2], "ffn": [0, 3],
            "vocabulary": [0, 64]}, …],
 "n_ctx": 4096, "batch": 64, "kv_bits": 16, "allreduce": "star", "wire": "f64", …}
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from picoedge.errors import ProtocolError
from picoedge.fields import Fields
from picoedge.store.shards import Slice

MOST_SEATS = 64
MOST_POSITIONS = 1 << 22
MOST_TOKENS = 4096  # run at once
MOST_SHARDS = 1 << 20
KEY = re.compile(r"[!-~]{40}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ADDRESS = re.compile(r"|[0-9A-Za-z.:%\[\]_-]{1,255}:[0-9]{1,5}")
IDENTIFIER = re.compile(r"[0-9a-f]{16,128}")
ALLREDUCES = ("star", "exchange")
WIRES = ("f64", "f32", "f16", "q8")


@dataclass(frozen=True)
class Seat:
    """A board of a session: its key, its name for people, and what it holds.

    `address` is of its data socket, "" where it need not be known; `daemon` of who can be asked
    for shards, "" likewise.
    """

    key: str
    name: str
    part: Slice
    address: str = ""
    daemon: str = ""


@dataclass(frozen=True)
class SessionSpec:
    """One board's view of a session. The seat of rank 0 is the hub's."""

    session: str
    epoch: int
    pack_id: str
    pack_name: str
    rank: int
    seats: tuple[Seat, ...]
    n_ctx: int
    batch: int
    kv_bits: int = 16
    allreduce: str = "star"
    wire: str = "f64"
    window_io: str = "auto"
    kernels: str = ""  # "" is what the board has

    @property
    def part(self) -> Slice:
        """What this board holds."""
        return self.seats[self.rank].part

    def contributors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ranks that have attention shards, and ranks that have FFN shards."""
        ranks = range(len(self.seats))
        return (
            tuple(rank for rank in ranks if self.seats[rank].part.attention),
            tuple(rank for rank in ranks if self.seats[rank].part.ffn),
        )

    def head_shards(self) -> tuple[range, ...]:
        """By rank, the run of head shards; none, where the hub has all of the head."""
        runs = tuple(seat.part.vocabulary for seat in self.seats)
        return runs if any(runs[1:]) else ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; `spec_from_json` reads them."""
        values = dataclasses.asdict(self)
        del values["pack_id"], values["pack_name"]
        values["pack"] = {"id": self.pack_id, "name": self.pack_name}
        values["seats"] = [_seat_to_json(seat) for seat in self.seats]
        return values


def _seat_to_json(seat: Seat) -> dict[str, Any]:
    part = seat.part
    return {
        "key": seat.key,
        "name": seat.name,
        "address": seat.address,
        "daemon": seat.daemon,
        "attention": [part.attention.start, part.attention.stop],
        "ffn": [part.ffn.start, part.ffn.stop],
        "vocabulary": [part.vocabulary.start, part.vocabulary.stop],
    }


def spec_from_json(values: object) -> SessionSpec:
    """The inverse of `SessionSpec.to_json`. Raises ProtocolError naming what is wrong."""
    fields = Fields(values, "the session")
    pack, seats = fields.object("pack"), fields.objects("seats", MOST_SEATS)
    if len(seats) < 2:
        raise fields.fault("seats", f"a list of 2 to {MOST_SEATS}")
    spec = SessionSpec(
        session=fields.text("session", pattern=IDENTIFIER),
        epoch=fields.integer("epoch", 0, (1 << 32) - 1),
        pack_id=pack.text("id", pattern=IDENTIFIER),
        pack_name=pack.text("name", pattern=NAME),
        rank=fields.integer("rank", 1, len(seats) - 1),
        seats=tuple(_seat(seat, rank) for rank, seat in enumerate(seats)),
        n_ctx=fields.integer("n_ctx", 1, MOST_POSITIONS),
        batch=fields.integer("batch", 1, MOST_TOKENS),
        kv_bits=fields.one_of("kv_bits", (16, 8)),
        allreduce=fields.one_of("allreduce", ALLREDUCES),
        wire=fields.one_of("wire", WIRES),
        window_io=fields.one_of("window_io", ("auto", "mmap", "direct")),
        kernels=fields.one_of("kernels", ("", "native", "numpy")),
    )
    if len({seat.key for seat in spec.seats}) < len(seats):
        raise ProtocolError("two seats of the session have one key")
    heads = [seat.part.vocabulary for seat in spec.seats]
    ends = [0, *(run.stop for run in heads)]
    if [run.start for run in heads] != ends[:-1] or not ends[-1]:
        raise ProtocolError("head shards of the session that do not follow one another")
    return spec


def _seat(fields: Fields, rank: int) -> Seat:
    attention, ffn, words = (
        fields.span(kind, MOST_SHARDS) for kind in ("attention", "ffn", "vocabulary")
    )
    return Seat(
        fields.text("key", pattern=KEY),
        fields.text("name", pattern=NAME),
        Slice(attention, ffn, words, head=rank == 0),
        fields.text("address", pattern=ADDRESS),
        fields.text("daemon", pattern=ADDRESS),
    )
