"""The forward passes of a group: input to all ranks, a sum after each stage, logits to the hub.

A pass is a broadcast of its input, then two stages a layer: attention and FFN. Each ends in a sum,
or in two, each of some rows: one travels while the other is computed. If ranks share the head, the
hub gathers their logits when it has asked for them, a few rows at a time. All ranks make the same
calls in the same order:

    hub                              workers
    forward_pass.input(x, position)  x, position, wanted = forward_pass.next_input()
    finish = forward_pass.begin(sums) ... finish()          for each stage, on all ranks
    forward_pass.gather(logits)      where logits are wanted
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from picoedge.host.resources import is_rationed
from picoedge.jobs.group_links import WORKER_SILENCE_S, hub_rule
from picoedge.kernels.arrays import F32, F64
from picoedge.kernels.loader import load_f48
from picoedge.mesh.group.allreduce import reduce
from picoedge.mesh.group.channel import F32_PIECE_VALUES, ArrayLimits, Channel, message_pieces
from picoedge.mesh.group.codecs import codecs_for, is_cut
from picoedge.mesh.group.links import SPIN_S, Links
from picoedge.mesh.transport.frames import HUB, U32, Dtype, Header, Kind
from picoedge.model.transformer import LOGIT_ROWS

if TYPE_CHECKING:
    from picoedge.cluster.spec import GroupSpec
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context
    from picoedge.store.pack.reader import Pack


class Tag(IntEnum):
    """The role of an array; the numbers were kinds of their own in version 1 of the frames."""

    INPUT = 2  # rows of a pass; extra: position of the first one
    INPUT_LAST = 8  # as INPUT, and logits of its last row are wanted
    INPUT_ALL = 9  # as INPUT, and logits of all its rows are wanted
    LOGITS = 10  # some of a row's; extra: the row's first value, plus the first of these


INPUTS = (Tag.INPUT, Tag.INPUT_LAST, Tag.INPUT_ALL)


@dataclass(frozen=True)
class Stages:
    """Ranks with attention shards and ranks with FFN shards, each ascending.

    `columns`, by rank, are the columns of the logits that each computes; () if the hub computes
    them all.
    """

    attention: tuple[int, ...]
    ffn: tuple[int, ...]
    layers: int
    columns: tuple[range, ...] = ()

    @property
    def count(self) -> int:
        """Stages of one forward pass."""
        return 2 * self.layers

    def contributors(self, stage: int) -> tuple[int, ...]:
        """Ranks that add to the sums of that stage."""
        return self.ffn if stage % 2 else self.attention

    def receivers(self, stage: int, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks, of the group's `ranks`, that need the sums of that stage.

        All do, but for the last stage: the hub, and the ranks that compute logits.
        """
        return ranks if stage < self.count - 1 else (HUB, *self.logit_ranks)

    @property
    def logit_ranks(self) -> tuple[int, ...]:
        """Ranks that send logits to the hub."""
        return tuple(rank for rank, own in enumerate(self.columns) if own and rank != HUB)


class ForwardPass:
    """One rank's side of a group's forward passes. Raises what `Channel` raises.

    `owners` add up the sums: (HUB,) in a star; None in an exchange, where every rank adds, and
    long sums are cut into a chunk for each contributor. Inputs must end before position `n_ctx`.
    """

    def __init__(
        self,
        channel: Channel,
        stages: Stages,
        *,
        owners: tuple[int, ...] | None = (HUB,),
        n_ctx: int = U32,
    ) -> None:
        self.channel, self._stages, self._owners, self._n_ctx = channel, stages, owners, n_ctx
        self._inputs = INPUTS if stages.logit_ranks else INPUTS[:1]
        self._x: F32 | None = None
        self._stage = stages.count  # of the pass under way; none is
        self._n = self._rows_left = 0  # rows of the pass; those whose sums here are not begun

    # -- input ---------------------------------------------------------------------------------

    def input(self, x: F32, position: int, wanted: int = 0) -> None:
        """The hub begins a pass with x, f32 [n, hidden], at that position.

        `wanted`: of how many of the last rows it will gather logits: 0, 1 or n.
        """
        channel = self.channel
        assert channel.rank == HUB
        assert self._stage == self._stages.count, "the last forward pass is unfinished"
        tag, number = self._inputs[min(wanted, 2, len(self._inputs) - 1)], channel.advance()
        for piece in channel.limits.row_pieces(len(x)):
            header = self._input_header(tag, len(x), position + piece.start, number)
            channel.send_bytes(channel.others, header, memoryview(x[piece]).cast("B"))
        self._begin(len(x))

    def next_input(self) -> tuple[F32, int, int] | None:
        """A worker waits for the next pass: x, f32 [n, hidden], its position, and `wanted`.

        None after the hub's goodbye. The next call overwrites x.
        """
        first = self.channel.receive_next(HUB)
        if first is None:
            return None
        header, raw, body = first
        tag, n, position = header.tag, header.shape[0] if header.shape else 0, header.extra
        limits, number = self.channel.limits, self.channel.advance()
        fits = 1 <= n <= limits.rows and position + n <= self._n_ctx and tag in self._inputs
        if not fits or raw != self._input_header(tag, n, position, number):
            raise self.channel.fault(HUB, f"sent {_name(header)} instead of input {number}")
        if self._x is None:
            self._x = np.zeros((limits.rows, limits.width), np.float32)
        x = self._x[:n]
        for piece in limits.row_pieces(n):
            if piece.start:
                expected = self._input_header(tag, n, position + piece.start, number)
                body = self.channel.receive((HUB,), expected)[HUB]
            self._fill(HUB, x[piece], body, f"bytes of input instead of {x[piece].nbytes}")
        self._begin(n)
        return x, position, {Tag.INPUT: 0, Tag.INPUT_LAST: 1}.get(Tag(tag), n)

    def _input_header(self, tag: int, n: int, first: int, number: int) -> bytes:
        shape = n, self.channel.limits.width
        return self.channel.header(Kind.DATA, Dtype.F32, shape, first, number, tag)

    def _fill(self, rank: int, out: F32, body: memoryview, due: str) -> None:
        if len(body) != out.nbytes:
            raise self.channel.fault(rank, f"sent {len(body)} {due}")
        out[...] = np.frombuffer(body, "<f4").reshape(out.shape)

    def _begin(self, n: int) -> None:
        self.channel.fence()
        self._stage, self._n, self._rows_left = 0, n, n
        self.channel.expects_sums = True

    # -- sums ----------------------------------------------------------------------------------

    def begin(self, sums: F64) -> Callable[[], None]:
        """Send what this rank adds to some sums, f64 [n, hidden], of this stage.

        Call the returned function, in the order in which sums were begun: it puts the group's sums
        in their place. The rows of a stage may come in several sums; the next ones of the same rows
        are begun once these are finished.
        """
        stages, channel, stage = self._stages, self.channel, self._stage
        assert stage < stages.count, "a sum outside of a forward pass"
        assert 0 < len(sums) <= self._rows_left, "more rows than the forward pass has"
        self._rows_left -= len(sums)
        if not self._rows_left:
            self._stage, self._rows_left = stage + 1, self._n
            channel.expects_sums = self._stage < stages.count
        contributors, owners = stages.contributors(stage), self._owners
        if owners is None and is_cut(sums.size, len(contributors)):
            owners = contributors
        receivers = stages.receivers(stage, channel.ranks)
        return reduce(channel, sums, contributors, receivers, owners)

    # -- logits --------------------------------------------------------------------------------

    def gather(self, logits: F32) -> None:
        """Fill the hub's logits, f32 [rows, columns], with the columns of the other ranks.

        These send theirs, f32 [rows, own columns]. Nothing is sent if the hub computes them all.
        """
        stages, channel = self._stages, self.channel
        if not stages.logit_ranks:
            return
        assert self._stage == stages.count, "logits in the middle of a forward pass"
        number, all_columns = channel.advance(), channel.limits.gathered[1]
        ranks = stages.logit_ranks if channel.rank == HUB else (channel.rank,)
        longest = max(len(stages.columns[rank]) for rank in ranks)
        for row, values in enumerate(logits):
            for piece in message_pieces(slice(0, longest), F32_PIECE_VALUES):
                shape, extra = (len(logits), all_columns), row * all_columns + piece.start
                header = channel.header(Kind.DATA, Dtype.F32, shape, extra, number, Tag.LOGITS)
                if channel.rank == HUB:
                    self._receive_logits(values, piece, header)
                else:
                    channel.send_bytes((HUB,), header, memoryview(values[piece]).cast("B"))

    def _receive_logits(self, row: F32, piece: slice, header: bytes) -> None:
        """Put this piece of each rank's columns in its place in a row."""
        columns = self._stages.columns
        ranks = [rank for rank in self._stages.logit_ranks if len(columns[rank]) > piece.start]
        for rank, body in self.channel.receive(ranks, header).items():
            own = columns[rank][piece]
            self._fill(rank, row[own.start : own.stop], body, f"bytes of {len(own)} logits")


def _name(header: Header) -> str:
    known = header.kind is Kind.DATA and header.tag in list(Tag)
    return f"{Tag(header.tag).name} ({header})" if known else str(header)


def join_group(
    context: Context, keys: KeyPair, spec: GroupSpec, pack: Pack
) -> tuple[Links, ForwardPass]:
    """The links of rank `spec.rank`, none of which is open yet, and the forward passes over them.

    Raises UsageError if the codec does not fit.
    """
    config, rows, heads = pack.config, pack.head_shard_rows, spec.head_shards()
    codecs = codecs_for(spec.wire, config.hidden_size, load_f48(spec.kernels or None))
    gathered = (LOGIT_ROWS, pack.n_head_shards * rows) if heads else (0, 0)
    limits = ArrayLimits(spec.batch, config.hidden_size, gathered)
    links = Links(
        context,
        keys,
        spec.rank,
        spec.epoch,
        limits.socket_bounds(),
        rule=hub_rule(spec.rank),
        transport=spec.transport,
        version=spec.version,
        spin_s=0.0 if is_rationed() else SPIN_S,
        stall_s=WORKER_SILENCE_S,
    )
    for peer, (key, name) in spec.peers().items():
        links.add(peer, key, name)
    columns = tuple(range(run.start * rows, run.stop * rows) for run in heads)
    return links, ForwardPass(
        Channel(links, range(len(spec.ranks)), limits, codecs, silence_s=WORKER_SILENCE_S),
        Stages(*spec.contributors(), config.num_hidden_layers, columns),
        owners=None if spec.allreduce == "exchange" else (HUB,),
        n_ctx=spec.n_ctx,
    )
