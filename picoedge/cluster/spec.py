"""A group's specification as its hub sends it to one board: JSON, checked before use.

{"group": "6f0c…", "epoch": 7, "pack": {"id": "9a…", "name": "smollm2-135m"},
 "rank": 1, "ranks": [{"key": "…", "name": "desk", "attention": [0, 2], "ffn": [0, 3],
            "head_shards": [0, 64]}, …],
 "n_ctx": 4096, "batch": 64, "kv_bits": 16, "allreduce": "star", "wire": "f64", …}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from picoedge.engine.options import TRANSPORT_CHOICES
from picoedge.errors import ProtocolError
from picoedge.fields import Fields
from picoedge.jobs.spec import PACK_ID, SliceKey, read_slice
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.transport.frames import VERSION
from picoedge.store.adapter_shape import AdapterShape, read_shape
from picoedge.store.shards import Slice

if TYPE_CHECKING:
    from picoedge.mesh.group.peer_link import TransportChoice

MAX_RANKS = 64  # boards of one group: the assignment search and a star's hub are made for tens
MAX_CONTEXT = 1 << 22  # positions: above any model's context, below what overflows a cache offset
MAX_BATCH = 4096  # tokens of one pass: four times the most that a plan of this version has
KEY = re.compile(r"[!-~]{40}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ADDRESS = re.compile(r"|[0-9A-Za-z.:%\[\]_-]{1,255}:[0-9]{1,5}")
ALLREDUCES = ("star", "exchange")
WIRES = ("f64", "f32", "f16", "q8")
_VERSION_1 = {"transport": "stream", "version": 1}  # which its specifications do not name


@dataclass(frozen=True)
class RankSpec:
    """One rank of a group: its board's key and name, and its slice of the model.

    `address` is that of the rank's data socket, `daemon` that of a daemon which serves shards of
    the pack; "" if the receiver of the specification does not connect to it.
    """

    key: str
    name: str
    part: Slice
    address: str = ""
    daemon: str = ""

    def reached_at(self, daemon: str) -> RankSpec:
        """The same, its daemon and its data socket on the host of the address `daemon`, if any."""
        if not daemon:
            return self
        host, address = parse_address(daemon).host, self.address
        if address:
            address = str(Address(host, parse_address(address).port))
        return dataclasses.replace(self, address=address, daemon=daemon)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `spec_from_json` reads them."""
        names = {"key": self.key, "name": self.name}
        return {**names, "address": self.address, "daemon": self.daemon, **self.part.to_json()}


@dataclass(frozen=True)
class GroupSpec:
    """A group of boards that run one model, as seen by the board at `rank`. Rank 0 is the hub."""

    id: str
    epoch: int
    pack_id: str
    pack_name: str
    rank: int
    ranks: tuple[RankSpec, ...]
    n_ctx: int
    batch: int
    kv_bits: int = 16
    allreduce: str = "star"
    wire: str = "f64"
    window_io: str = "auto"
    kernels: str = ""  # "": those that the board chooses
    # Transport of messages; "auto": the quicker one of each pair.
    transport: TransportChoice = "stream"
    version: int = 1  # of the frames: the lowest that all ranks know
    adapter: AdapterShape | None = None  # that the hub sends once the links are open

    @property
    def part(self) -> Slice:
        """This board's slice."""
        return self.ranks[self.rank].part

    @property
    def slice_key(self) -> SliceKey:
        """The slice that this board has to load."""
        adapter = self.adapter.identity if self.adapter else ""
        how = self.n_ctx, self.kv_bits, self.window_io, self.kernels, adapter
        return SliceKey(self.pack_id, self.part, *how)

    @property
    def members(self) -> Sequence[tuple[str, str]]:
        """Key and name of each board, by rank."""
        return [(rank.key, rank.name) for rank in self.ranks]

    def peers(self) -> dict[int, tuple[str, str]]:
        """Key and name of the ranks this one exchanges messages with: all, or by way of the hub."""
        return {
            rank: member
            for rank, member in enumerate(self.members)
            if rank != self.rank and (self.allreduce == "exchange" or 0 in (rank, self.rank))
        }

    def with_daemons(self, daemons: Mapping[str, str]) -> GroupSpec:
        """The same, with other boards where `daemons` says that they are reached, by key."""
        ranks = tuple(rank.reached_at(daemons.get(rank.key, "")) for rank in self.ranks)
        return dataclasses.replace(self, ranks=ranks)

    def contributors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ranks with attention shards, and ranks with FFN shards."""
        ranks = range(len(self.ranks))
        return (
            tuple(rank for rank in ranks if self.ranks[rank].part.attention),
            tuple(rank for rank in ranks if self.ranks[rank].part.ffn),
        )

    def head_shards(self) -> tuple[range, ...]:
        """Each rank's span of head shards, by rank; empty if the hub has the whole head."""
        spans = tuple(rank.part.head_shards for rank in self.ranks)
        return spans if any(spans[1:]) else ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; `spec_from_json` reads them."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("id", "pack_id", "pack_name", "ranks", "adapter")
        }
        if self.adapter is not None:
            values["adapter"] = self.adapter.to_json()
        pack = {"id": self.pack_id, "name": self.pack_name}
        ranks = [rank.to_json() for rank in self.ranks]
        return {"group": self.id, "pack": pack, "ranks": ranks, **values}

    def describe(self) -> dict[str, Any]:
        """The model and this board's shards, for `picoedge ps`."""
        return {"model": self.pack_name, **self.part.to_json()}


def spec_from_json(values: object) -> GroupSpec:
    """The inverse of `GroupSpec.to_json`. Raises ProtocolError naming the field at fault."""
    given = Fields(values, "the group", ProtocolError)
    fields = Fields({**_VERSION_1, **given.values}, given.where, ProtocolError)
    pack, ranks = fields.object("pack"), fields.objects("ranks", MAX_RANKS)
    if len(ranks) < 2:
        raise fields.fault("ranks", f"a list of 2 to {MAX_RANKS}")
    spec = GroupSpec(
        id=fields.text("group", pattern=PACK_ID),
        epoch=fields.integer("epoch", 0, (1 << 32) - 1),
        pack_id=pack.text("id", pattern=PACK_ID),
        pack_name=pack.text("name", pattern=NAME),
        rank=fields.integer("rank", 1, len(ranks) - 1),
        ranks=tuple(_rank(each, rank) for rank, each in enumerate(ranks)),
        n_ctx=fields.integer("n_ctx", 1, MAX_CONTEXT),
        batch=fields.integer("batch", 1, MAX_BATCH),
        kv_bits=fields.one_of("kv_bits", (16, 8)),
        allreduce=fields.one_of("allreduce", ALLREDUCES),
        wire=fields.one_of("wire", WIRES),
        window_io=fields.one_of("window_io", ("auto", "mmap", "direct")),
        kernels=fields.one_of("kernels", ("", "native", "numpy")),
        transport=fields.one_of("transport", TRANSPORT_CHOICES),
        version=fields.integer("version", 1, VERSION),
        adapter=read_shape(fields.object("adapter")) if fields.values.get("adapter") else None,
    )
    if len({rank.key for rank in spec.ranks}) < len(ranks):
        raise ProtocolError("two ranks of the group have one key")
    heads = [rank.part.head_shards for rank in spec.ranks]
    ends = [0, *(span.stop for span in heads)]
    if [span.start for span in heads] != ends[:-1] or not ends[-1]:
        raise ProtocolError("head shards of the group that do not follow one another")
    return spec


def _rank(fields: Fields, rank: int) -> RankSpec:
    return RankSpec(
        fields.text("key", pattern=KEY),
        fields.text("name", pattern=NAME),
        read_slice(fields, owns_head=rank == 0),
        fields.text("address", pattern=ADDRESS),
        fields.text("daemon", pattern=ADDRESS),
    )
