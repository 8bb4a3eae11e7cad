"""The boards of one session at work: seats taken, slices loaded, sums tied. Used by the hub.

A team is one arrangement of slices over boards. Where a board is lost the team is closed, and
another made.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from picoedge.cluster.forward_pass import array_limits, make_forward_pass
from picoedge.cluster.spec import GroupSpec, RankSpec
from picoedge.engine.open import LoadedModel, SliceHooks, load_model
from picoedge.engine.options import OpenOptions
from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.jobs.boards import BoardDirectory, BoardHandle, reserve_boards
from picoedge.jobs.group_links import make_links, receive_note
from picoedge.jobs.status import read_work
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.frames import HUB
from picoedge.planner.cost_model import Prediction

if TYPE_CHECKING:
    from picoedge.jobs.progress_page import Work
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack

SILENT_S = 20.0  # a worker that starts says something before
CONNECT_S = 20.0
STOPPED_S = 1.0  # that long a board may stand still before it is given up
LOOK_S = 0.05


class Team:
    """Boards that run one model together: rank 0 is this process. `close` frees them all."""

    def __init__(
        self,
        directory: BoardDirectory,
        pack: Pack,
        options: OpenOptions,
        prediction: Prediction,
        *,
        tell: Callable[[str], None],
        progress: Progress | None = None,
    ) -> None:
        self._directory, self._tell = directory, tell
        self.prediction = prediction
        self.reports: dict[str, dict[str, Any]] = {}  # by key, the last of each
        self._reported_at: dict[str, float] = {}
        self._stopped_since: dict[str, float] = {}
        self._ports: dict[str, int] = {}
        self._progress, self._ready = progress, False
        self._peers = [directory.handles[share.board.key] for share in prediction.shares]
        with ExitStack() as stack:
            stack.callback(directory.close)
            memory = reserve_boards(directory, self._peers, tell)
            own = self._caller(self._peers[HUB])
            own.ask("pack-offer", {"folder": str(pack.path.absolute())})
            self._spec = spec = self._make_spec(pack, options)
            self._start()
            self._links = make_links(
                directory.context,
                directory.identity.keys,
                spec,
                array_limits(spec, pack).socket_bounds(),
            )
            stack.callback(self._links.close)
            self._connect()
            self.forward_pass = make_forward_pass(self._links, spec, pack)
            self.slice = self._open(pack, options, memory)
            stack.callback(self.slice.close)
            self._await_ready()
            self._stack = stack.pop_all()

    @property
    def boards(self) -> int:
        """How many there are, this one included."""
        return len(self._peers)

    @property
    def transports(self) -> dict[str, str]:
        """What carries this board's messages to each of the others, by their names."""
        return {self.names[rank]: each for rank, each in self._links.transports().items()}

    @property
    def names(self) -> list[str]:
        """What people call them, by rank."""
        return [peer.name for peer in self._peers]

    # -- coming together -----------------------------------------------------------------------

    def _make_spec(self, pack: Pack, options: OpenOptions) -> GroupSpec:
        prediction, cluster = self.prediction, options.cluster
        assert cluster is not None
        ranks = tuple(
            RankSpec(peer.key, peer.name, share.part, daemon=self._daemon_of(peer))
            for peer, share in zip(self._peers, prediction.shares, strict=True)
        )
        assert options.n_ctx is not None
        return GroupSpec(
            id=os.urandom(8).hex(),
            epoch=int.from_bytes(os.urandom(3), "big"),
            pack_id=pack.identity,
            pack_name=pack.name,
            rank=HUB,
            ranks=ranks,
            n_ctx=options.n_ctx,
            batch=max(prediction.batch, 1),
            kv_bits=options.kv_bits,
            allreduce=prediction.allreduce,
            wire=cluster.wire,
            transport=cluster.transport,
            window_io=options.window_io,
            kernels=options.kernels or "",
        )

    def _daemon_of(self, peer: BoardHandle) -> str:
        """Where other boards reach its daemon; they cannot reach this board's by a loop-back."""
        if peer is not self._peers[HUB]:
            return peer.address
        address = self._own_address()
        return str(address) if address is not None else ""

    def _own_address(self) -> Address | None:
        """As the workers see this board: the near end of a connection to one of them."""
        import socket

        port = parse_address(self._peers[HUB].address).port
        for peer in self._peers[1:]:
            far = parse_address(peer.address)
            family = socket.AF_INET6 if ":" in far.host else socket.AF_INET
            with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far.host, far.port))
                return Address(probe.getsockname()[0], port)
        return None

    def _start(self) -> None:
        """Workers listen: all at once, or for an exchange the last rank first."""
        ranks = range(len(self._peers) - 1, HUB, -1)
        for rank in ranks:
            spec = dataclasses.replace(self._spec, rank=rank)
            self._caller(self._peers[rank]).ask("job-start", {"spec": spec.to_json()})
            if self._spec.allreduce == "exchange":
                self._await_ports([rank])
        self._await_ports(ranks)

    def _await_ports(self, ranks: Sequence[int]) -> None:
        import zmq

        heard = time.monotonic()
        while missing := [r for r in ranks if self._peers[r].key not in self._ports]:
            sockets = [(self._caller(self._peers[r]).socket, zmq.POLLIN) for r in missing]
            if zmq.zmq_poll(sockets, int(LOOK_S * 1000)):
                heard = time.monotonic()
            if time.monotonic() - heard > SILENT_S:
                name = self._peers[missing[0]].name
                raise BoardLostError(f"{name} started no worker", board=name)
            for rank in missing:
                self.hear(self._peers[rank])
        ranked = list(self._spec.ranks)
        for rank in ranks:
            peer = self._peers[rank]
            address = Address(parse_address(peer.address).host, self._ports[peer.key])
            ranked[rank] = dataclasses.replace(ranked[rank], address=str(address))
        self._spec = dataclasses.replace(self._spec, ranks=tuple(ranked))

    def _connect(self) -> None:
        for rank, seat in enumerate(self._spec.ranks[1:], 1):
            self._links.connect(rank, seat.address)
        for peer in self._peers:
            self._links.poll_also(self._caller(peer).socket, lambda peer=peer: self.hear(peer))  # type: ignore[misc]
        self._links.open(CONNECT_S)
        for rank, why in self._links.unreachable().items():
            self._tell(f"{self.names[rank]}: its stream cannot be reached ({why}): using ZeroMQ")

    def _open(self, pack: Pack, options: OpenOptions, memory_bytes: int) -> LoadedModel:
        memory = min(options.memory_bytes or memory_bytes, memory_bytes)
        own = dataclasses.replace(options, memory_bytes=memory, cluster=None)
        forward_pass = self.forward_pass
        hooks = SliceHooks(forward_pass.begin, forward_pass.input, forward_pass.gather)
        return load_model(pack, own, self._progress, part=self._spec.part, hooks=hooks)

    def _await_ready(self) -> None:
        batches = [self._spec.batch, self.slice.batch]
        for rank in range(1, self.boards):
            note = receive_note(self._links, rank, None)
            batch = note.get("batch")
            if type(batch) is not int or batch < 1:
                raise ProtocolError(f"{self._peers[rank].name} is ready for no batch")
            batches.append(batch)
        self.slice.batch = min(batches)
        self._ready = True

    # -- hearing -------------------------------------------------------------------------------

    def _caller(self, peer: BoardHandle) -> Client:
        return self._directory.clients[peer.key]

    def hear(self, peer: BoardHandle) -> None:
        """What a daemon told of its worker. Raises BoardLostError where that is of no more use."""
        for kind, body in self._caller(peer).notifications():
            if kind == "job-listens":
                self._ports[peer.key] = _port_of(body, peer)
            elif kind == "job-ended":
                raise self._ended(peer, body)
            elif kind == "job-report":
                self._reported(peer, body)
            elif kind == "job-revoked" and peer is self._peers[HUB]:
                self._revoked(body)

    def work_since(self, time_s: float) -> dict[str, Work]:
        """What workers have done, by key, of those that have reported since (monotonic).

        Raises BoardLostError as `hear` does.
        """
        for peer in self._peers:
            self.hear(peer)
        heard = [key for key, at in self._reported_at.items() if at >= time_s]
        works = {key: read_work(self.reports[key]) for key in heard}
        return {key: work for key, work in works.items() if work is not None}

    def _revoked(self, body: dict[str, Any]) -> None:
        for peer in self._peers:
            if peer.key == body.get("key"):
                raise BoardLostError(f"{peer.name} was revoked", board=peer.name)

    def _ended(self, peer: BoardHandle, body: dict[str, Any]) -> MeshError:
        """A board that says itself why it cannot begin will say so again: that ends the session."""
        why, hint = (str(body.get(name, ""))[:500] for name in ("message", "hint"))
        if body.get("board") in self.names:  # it has lost another: that one is to blame
            return BoardLostError(why, hint, board=str(body["board"]))
        if body.get("failed") and not self._ready:
            return MeshError(f"{peer.name}: {why}", hint)
        return BoardLostError(f"{peer.name}: {why}", hint, board=peer.name)

    def _reported(self, peer: BoardHandle, report: dict[str, Any]) -> None:
        self.reports[peer.key], self._reported_at[peer.key] = report, time.monotonic()
        if self._progress is not None and report.get("stage") in ("pulling", "loading"):
            done, total = report.get("done"), report.get("total")
            if isinstance(done, int) and isinstance(total, int) and total:
                self._progress(f"{peer.name}: {report['stage']}", done, total)
        if report.get("state") != "stopped":
            self._stopped_since.pop(peer.key, None)
            return
        since = self._stopped_since.setdefault(peer.key, time.monotonic())
        if time.monotonic() - since > STOPPED_S:
            raise BoardLostError(f"{peer.name}: its worker is stopped", board=peer.name)

    def reason(self, lost: BoardLostError, patience_s: float = 0.3) -> BoardLostError:
        """What the lost board's daemon says of it, where it says so soon; else what is known."""
        peer = next((p for p in self._peers if p.name == lost.board), None)
        deadline = time.monotonic() + patience_s
        while peer is not None and time.monotonic() < deadline:
            try:
                self.hear(peer)
            except BoardLostError as error:
                lost = error
                break
            except MeshError:
                break
            time.sleep(LOOK_S)
        return self._with_last_words(lost, peer) if peer else lost

    def _with_last_words(self, lost: BoardLostError, peer: BoardHandle) -> BoardLostError:
        report = self.reports.get(peer.key)
        if report is None:
            return lost
        ago_s = time.monotonic() - self._reported_at[peer.key]
        stage, state = (str(report.get(name, "?"))[:40] for name in ("stage", "state"))
        said = f"{lost.message}; {ago_s:.1f} s ago it reported: {stage}, {state}"
        return BoardLostError(said, lost.hint, board=lost.board)

    def close(self) -> None:
        """Say goodbye, and free all boards. Idempotent."""
        self._links.bye()
        self._stack.close()


def _port_of(body: dict[str, Any], peer: BoardHandle) -> int:
    port = body.get("port")
    if type(port) is not int or not 0 < port < 1 << 16:
        raise ProtocolError(f"{peer.name} listens on no port")
    return port
