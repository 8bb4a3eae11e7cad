"""The hub's side of a group: start a worker on each reserved board, connect, load its own slice.

A WorkerGroup is one assignment of slices to boards. When a board fails, its group is closed and
another one started.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import zmq

from picoedge.cluster.daemon_reports import POLL_S, DaemonReports, lost_board
from picoedge.cluster.forward_pass import ForwardPass, join_group
from picoedge.cluster.spec import GroupSpec, RankSpec
from picoedge.engine.open import load_model
from picoedge.errors import BoardRefusedError
from picoedge.fields import Fields
from picoedge.jobs.boards import BoardDirectory, BoardHandle, refusals
from picoedge.jobs.group_links import blaming, connect, receive_note
from picoedge.jobs.kept_memory import keep_slice
from picoedge.jobs.spec import INFERENCE
from picoedge.mesh.addresses import Address, near_host, parse_address
from picoedge.mesh.transport.frames import HUB, VERSION
from picoedge.store.window.weights import StreamedWeights

if TYPE_CHECKING:
    from picoedge.engine.fit import LoadedModel
    from picoedge.engine.options import OpenOptions
    from picoedge.jobs.relay import Relay
    from picoedge.mesh.group.links import Links
    from picoedge.model.adapter import AdapterSlice
    from picoedge.planner.cost_model import Candidate
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack
    from picoedge.store.window.set_aside import SetAside

WORKER_START_S = 20.0  # silence of a starting worker: Python's start on a slow card takes ten
CONNECT_S = 20.0  # for links to workers that listen already: a handshake on a busy board


class WorkerGroup:
    """Boards that run one model together, rank 0 in this process, assigned by `candidate`.

    `handles`, by rank, are reserved. Call `start`, and `close` when it has started, which frees
    them all.
    """

    slice: LoadedModel
    forward_pass: ForwardPass
    _spec: GroupSpec
    _links: Links
    _stack: ExitStack

    def __init__(
        self,
        directory: BoardDirectory,
        handles: Sequence[BoardHandle],
        candidate: Candidate,
        tell: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self._directory, self._tell, self._progress = directory, tell, progress
        self._handles, self._candidate = handles, candidate
        self._relays: dict[int, Relay] = {}
        exchanges = candidate.allreduce == "exchange"
        self.daemons = DaemonReports(handles, directory.unlink, progress, exchanges=exchanges)

    def start(
        self,
        pack: Pack,
        options: OpenOptions,
        aside: SetAside | None,
        on_plan: Callable[[int], None],
    ) -> None:
        """Start the group; returns when all slices are loaded.

        That takes as long as pulling shards takes. Weights set `aside` are not read. `on_plan` is
        called with the bytes that this process will take.
        Raises BoardLostError if a board fails meanwhile, BoardRefusedError if one reports that it
        cannot do it.
        """
        directory = self._directory
        with ExitStack() as stack:
            stack.callback(directory.close)
            folder = str(pack.path.absolute())
            self._handles[HUB].client.ask("pack-offer", {"folder": folder})
            self._spec = self._make_spec(pack, options)
            self._start_workers()
            self._links, self.forward_pass = join_group(
                directory.context, directory.identity.keys, self._spec, pack
            )
            stack.callback(self._close_relays)
            stack.callback(self._links.close)
            self._connect()
            self._send_adapter(options.adapter)
            self.slice = load_model(
                pack,
                options,
                self._progress,
                part=self._spec.part,
                reduce=self.forward_pass.begin,
                broadcast_input=self.forward_pass.input,
                gather_logits=self.forward_pass.gather,
                aside=aside,
                on_plan=on_plan,
            )
            stack.callback(self.slice.close)
            self._await_ready()
            self._stack = stack.pop_all()

    @property
    def boards(self) -> int:
        """The number of boards, this one included."""
        return len(self._handles)

    @property
    def transports(self) -> dict[str, str]:
        """The transport of this board's messages to each of the others, by their names."""
        used = self._links.transports()
        return {
            self.names[rank]: "relay" if rank in self._relays and each == "zeromq" else each
            for rank, each in used.items()
        }

    def _close_relays(self) -> None:
        for relay in self._relays.values():
            relay.close()

    @property
    def names(self) -> list[str]:
        """Names of the boards, by rank."""
        return [handle.name for handle in self._handles]

    # -- starting ------------------------------------------------------------------------------

    def _make_spec(self, pack: Pack, options: OpenOptions) -> GroupSpec:
        candidate, cluster = self._candidate, options.cluster
        assert cluster is not None
        assert options.n_ctx is not None
        daemons = ["", *(handle.address for handle in self._handles[1:])]
        ranks = tuple(
            RankSpec(handle.key, handle.name, share.part, daemon=daemon)
            for handle, share, daemon in zip(self._handles, candidate.shares, daemons, strict=True)
        )
        version = min(handle.client.version for handle in self._handles)
        if options.adapter is not None and version < VERSION:
            raise self._outdated()
        return GroupSpec(
            id=os.urandom(8).hex(),
            epoch=int.from_bytes(os.urandom(3), "big"),
            pack_id=pack.identity,
            pack_name=pack.name,
            rank=HUB,
            ranks=ranks,
            n_ctx=options.n_ctx,
            batch=max(candidate.batch, 1),
            kv_bits=options.kv_bits,
            allreduce=candidate.allreduce,
            wire=cluster.wire,
            transport=cluster.transport if version > 1 else "stream",
            version=version,
            window_io=options.window_io,
            kernels=options.kernels or "",
            adapter=options.adapter.shape if options.adapter else None,
        )

    def _outdated(self) -> BoardRefusedError:
        from picoedge.cluster.adapter_transfer import outdated

        handle = min(self._handles, key=lambda handle: handle.client.version)
        return outdated(handle.name, handle.key)

    def _spec_for(self, rank: int) -> GroupSpec:
        """The specification as that rank's board is sent it, with where it reaches this board."""
        own = parse_address(self._handles[HUB].address)
        if own.is_loopback:  # as its daemon listens on all interfaces: each worker has its own
            host = near_host(parse_address(self._handles[rank].address))
            own = Address(host or own.host, own.port)
        hub = dataclasses.replace(self._spec.ranks[HUB], daemon=str(own))
        return dataclasses.replace(self._spec, rank=rank, ranks=(hub, *self._spec.ranks[1:]))

    def _start_workers(self) -> None:
        """Start workers until they listen: together, or for an exchange the last rank first,
        because each rank connects to the higher ones.
        """
        ranks = range(len(self._handles) - 1, HUB, -1)
        for rank in ranks:
            spec = self._spec_for(rank)
            body = {"job": INFERENCE, "spec": spec.to_json()}
            with refusals(self._handles[rank]):
                self._handles[rank].client.ask("job-start", body)
            if self._spec.allreduce == "exchange":
                self._await_ports([rank])
        self._await_ports(ranks)

    def _await_ports(self, ranks: Sequence[int]) -> None:
        heard_s = time.monotonic()
        while missing := [r for r in ranks if self._handles[r].key not in self.daemons.ports]:
            sockets = [(self._handles[r].client.socket, zmq.POLLIN) for r in missing]
            if zmq.zmq_poll(sockets, int(POLL_S * 1000)):
                heard_s = time.monotonic()
            if time.monotonic() - heard_s > WORKER_START_S:
                name = self._handles[missing[0]].name
                raise lost_board(self._handles[missing[0]], f"{name} started no worker")
            for rank in missing:
                self.daemons.read(self._handles[rank])
        specs = list(self._spec.ranks)
        for rank in ranks:
            handle = self._handles[rank]
            address = Address(parse_address(handle.address).host, self.daemons.ports[handle.key])
            specs[rank] = dataclasses.replace(specs[rank], address=str(address))
        self._spec = dataclasses.replace(self._spec, ranks=tuple(specs))

    def _connect(self) -> None:
        keys = self._directory.identity.keys
        ranks = enumerate(self._spec.ranks[1:], 1)
        to = {rank: (each.address, each.daemon) for rank, each in ranks}
        for failure in connect(self._links, keys, to, self._relays).values():
            raise failure
        for rank in self._relays:
            closed = parse_address(to[rank][0]).port
            self._tell(
                f"{self.names[rank]}: port {closed} of its worker is closed (a firewall?):"
                f" its daemon's port {parse_address(to[rank][1]).port} carries the sums"
            )
        for handle in self._handles:
            socket = handle.client.socket
            self._links.poll_also(socket, lambda handle=handle: self.daemons.read(handle))  # type: ignore[misc]
        self._links.open(CONNECT_S)
        for rank, why in self._links.unreachable().items():
            self._tell(f"{self.names[rank]}: its stream cannot be reached ({why}): using ZeroMQ")

    def _send_adapter(self, adapter: AdapterSlice | None) -> None:
        """Send each worker its part, if there is an adapter."""
        if adapter is None:
            return
        from picoedge.cluster.adapter_transfer import send_adapter

        for rank in range(1, self.boards):
            send_adapter(self._links, rank, adapter.of(self._spec.ranks[rank].part))

    def _await_ready(self) -> None:
        """Wait for all workers to load their slices; the group's batch is the smallest of all."""
        batches = [self._spec.batch, self.slice.batch]
        for rank in range(1, self.boards):
            note = Fields(receive_note(self._links, rank, None), "a note")
            with blaming(self._links, rank):
                batches.append(note.integer("batch", 1))
        self.slice.batch = min(batches)
        self.daemons.is_ready = True

    def leave_slice(self) -> None:
        """Have this board's daemon keep the slice, if it does that; `close` must follow."""
        weights, folder = self.slice.weight_store, self._directory.identity.folder
        if isinstance(weights, StreamedWeights):
            key = self._spec.slice_key.to_json()
            keep_slice(folder, key, self._spec.pack_name, weights.set_aside)

    def close(self) -> None:
        """Say goodbye to the workers, and free all boards. Idempotent."""
        with self._stack:  # also where Ctrl-C interrupts a goodbye
            self._links.bye()
            self._links.leave(0.0)
