"""The process that runs one slice of a model: `python -m picoedge.cluster.worker`.

Its daemon writes a WorkerConfig to stdin, one line of JSON. The worker prints, a line each,
{"port": N} when the hub may connect, {"transport": …} when it has, and {"failed": {...}} if an
error ends the job. It holds the board's slice alone: no embedding, no text, no tokens.

Where the daemon keeps slices, {"kept": …} follows the end of a group that left the weights whole:
the process waits for another line, without links, cache or buffers, and a group that needs the same
slice begins at once. The end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.cluster.forward_pass import ForwardPass, join_group
from picoedge.cluster.spec import GroupSpec, spec_from_json
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.errors import (
    BoardLostError,
    ModelError,
    PicoedgeError,
    ProtocolError,
    UnlinkedError,
)
from picoedge.host.processes import end_with_parent
from picoedge.host.resources import rss_bytes
from picoedge.jobs.group_links import connect, send_note
from picoedge.jobs.progress_page import ProgressPage, Work
from picoedge.jobs.relay import Relay, new_endpoint
from picoedge.jobs.spec import SliceKey, WorkerConfig
from picoedge.mesh.cluster_folder import cluster_folder
from picoedge.mesh.identity.identity import Identity, KeyPair, load_identity
from picoedge.mesh.transport.frames import HUB
from picoedge.mesh.transport.listening import ANY_PORT
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Wanted

if TYPE_CHECKING:
    from picoedge.engine.fit import LoadedModel
    from picoedge.mesh.group.links import Links
    from picoedge.model.adapter import AdapterSlice

# For all ranks to connect: some may pull gigabytes first. If the hub fails, the daemon ends this.
JOIN_S = 24 * 3600.0


@dataclass
class WorkerState:
    """The state kept from one job of this process to the next: its page, and a loaded slice."""

    page: ProgressPage
    slice: LoadedSlice | None = None


@dataclass(frozen=True)
class LoadedSlice:
    """A loaded slice of a pack, and the key of jobs that can use it."""

    key: SliceKey
    pack: Pack
    model: LoadedModel

    @property
    def planned_bytes(self) -> int:
        """Bytes that the process takes when the context is full."""
        plan = self.model.memory_plan
        return plan.total if plan else rss_bytes()


def main() -> int:
    """Run a job for each line of stdin; exit code 1 if something but its hub ended the last one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the daemon ends its worker itself
    board: WorkerState | None = None
    while line := sys.stdin.readline():
        config = WorkerConfig.from_json(json.loads(line))
        if board is None:
            end_with_parent(config.daemon)
            board = WorkerState(ProgressPage(config.page))
        board.page.clear()
        code = _run(config, board)
        if board.slice is None:
            return code
        board.page.write("kept")
        _say({"kept": board.slice.planned_bytes})
    return 0


def _run(config: WorkerConfig, board: WorkerState) -> int:
    """Run one job; its slice stays in `board` if it is to be kept, and is whole."""
    try:
        spec = spec_from_json(config.spec)
        spec = spec.with_daemons(config.daemons)
        run_worker(config, spec, load_identity(cluster_folder(os.environ)), board)
    except BoardLostError as error:  # the group is over; this board's slice is not to blame
        code = 0 if error.key == spec.ranks[HUB].key else _failed(error)
        _forget_group(board, config)  # once that is said: the hub waits for it
        return code
    except UnlinkedError as error:
        code = _failed(error, unreached=error.keys)
        _forget_group(board, config)
        return code
    except PicoedgeError as error:
        board.slice = None
        return _failed(error)
    except MemoryError:
        board.slice = None
        return _failed(PicoedgeError("out of memory", "allow picoedge run more, or fewer weights"))
    _forget_group(board, config)
    return 0


def _forget_group(board: WorkerState, config: WorkerConfig) -> None:
    """Keep the weights alone, if at all: no key or value, no activation of the group that ended."""
    kept, board.slice = board.slice, None
    if kept is not None and config.keep:
        with suppress(PicoedgeError):  # its disk has failed: nothing is kept
            kept.model.renew(None, None)
            board.slice = kept


def _failed(error: PicoedgeError, unreached: Sequence[str] = ()) -> int:
    board = error.board if isinstance(error, BoardLostError) else ""
    key = error.key if isinstance(error, BoardLostError) else ""
    words = {"message": error.message, "hint": error.hint, "board": board, "key": key}
    _say({"failed": {**words, "unreached": list(unreached)}})
    return 1


def _say(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def run_worker(
    config: WorkerConfig, spec: GroupSpec, identity: Identity, board: WorkerState
) -> None:
    """Connect to the group, load the slice, compute until the hub says goodbye.

    `board.slice` is the slice from then on; a loaded slice is used if the group needs the same.
    Raises PicoedgeError.
    """
    page, context = board.page, zmq.Context()
    kept = board.slice if board.slice and board.slice.key == spec.slice_key else None
    if kept is None and board.slice is not None:
        board.slice.model.close()
        board.slice = None
    relays: dict[int, Relay] = {}
    with ExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        pack = kept.pack if kept else _open_pack(context, identity.keys, config, spec, page)
        check_shards(spec, pack)
        links, forward_pass = join_group(context, identity.keys, spec, pack)
        stack.callback(_close_all, relays)
        stack.callback(links.close)
        ports = range(config.ports[0], config.ports[1] + 1) if config.ports else ANY_PORT
        port = links.listen(config.host, relay := new_endpoint(), ports)
        if spec.allreduce == "exchange":
            _connect_workers(links, identity.keys, spec, relays)
        _say({"port": port, "relay": relay})
        links.open(JOIN_S)
        _say({"transport": links.transports()[HUB]})
        if kept is None:
            adapter = _receive_adapter(links, spec, pack, config.memory_bytes)
            model = _load(config, spec, pack, adapter, forward_pass, page)
            board.slice = kept = LoadedSlice(spec.slice_key, pack, model)
        else:
            _keep_adapter(links, spec, pack)
            kept.model.renew(forward_pass.begin, forward_pass.gather)
        _say({"memory": kept.planned_bytes})
        plan = kept.model.memory_plan.to_json() if kept.model.memory_plan else None
        send_note(links, HUB, {"ready": True, "batch": kept.model.batch, "plan": plan})
        _follow(kept.model, forward_pass, page)
        links.leave()


def _close_all(relays: Mapping[int, Relay]) -> None:
    for each in relays.values():
        each.close()


def _open_pack(
    context: zmq.Context[zmq.Socket[bytes]],
    keys: KeyPair,
    config: WorkerConfig,
    spec: GroupSpec,
    page: ProgressPage,
) -> Pack:
    pack = Pack.open(pull_missing(context, keys, config, spec, page))
    if pack.identity != spec.pack_id:
        raise ModelError(f"{pack.path} is not the pack that the session runs", "remove it")
    return pack


def _connect_workers(
    links: Links, keys: KeyPair, spec: GroupSpec, relays: dict[int, Relay]
) -> None:
    """Connect to the workers of higher ranks. Raises UnlinkedError."""
    higher = range(spec.rank + 1, len(spec.ranks))
    to = {rank: (spec.ranks[rank].address, spec.ranks[rank].daemon) for rank in higher}
    failures = connect(links, keys, to, relays)
    for error in failures.values():
        raise UnlinkedError(
            error.message, error.hint, keys=tuple(spec.ranks[rank].key for rank in failures)
        )


def check_shards(spec: GroupSpec, pack: Pack) -> None:
    """Raises ProtocolError if the group assigns other shards than the model has."""
    last = spec.ranks[-1].part.head_shards.stop
    spans = [(rank.part.attention, pack.n_attention_shards) for rank in spec.ranks]
    spans += [(rank.part.ffn, pack.n_ffn_shards) for rank in spec.ranks]
    if last != pack.n_head_shards or any(span.stop > count for span, count in spans):
        raise ProtocolError("a group with shards that the model does not have")


def pull_missing(
    context: zmq.Context[zmq.Socket[bytes]],
    keys: KeyPair,
    config: WorkerConfig,
    spec: GroupSpec,
    page: ProgressPage,
) -> Path:
    """Pull the missing shards of this rank's slice from the group's other boards.

    Returns the folder of the pack. Raises MeshError, ModelError.
    """
    wanted, path = Wanted(spec.part), config.pack
    if path is None:
        from picoedge.store.pack.partial import pack_folder

        path = pack_folder(config.shelf, spec.pack_name, spec.pack_id)
    if path.exists() and not Pack.open(path).missing(wanted):
        return path
    from picoedge.mesh.addresses import parse_address  # below, as it takes 2 MB
    from picoedge.mesh.transfer.donor_client import DonorClient
    from picoedge.mesh.transfer.puller import PullOptions, pull
    from picoedge.mesh.transport.connection import InboxGuard

    def on_progress(done: int, total: int) -> None:
        page.write("pulling", done=done, total=total)

    page.write("pulling")
    with ExitStack() as stack:
        donors, guard = [], InboxGuard()
        stack.callback(guard.close)
        for number, rank in enumerate(spec.ranks):
            if number != spec.rank and rank.daemon:
                donor = DonorClient(context, keys, parse_address(rank.daemon), rank.key, guard)
                stack.callback(donor.close)
                donors.append((rank.name, donor))
        pull(path, spec.pack_id, wanted, donors, PullOptions(progress=on_progress))
    return path


def _receive_adapter(
    links: Links, spec: GroupSpec, pack: Pack, memory_bytes: int
) -> AdapterSlice | None:
    if spec.adapter is None:
        return None
    from picoedge.cluster.adapter_transfer import receive_adapter

    return receive_adapter(links, spec.adapter, spec.part, pack, memory_bytes)


def _keep_adapter(links: Links, spec: GroupSpec, pack: Pack) -> None:
    """Tell the hub that the kept slice has its part of the group's adapter, if there is one."""
    if spec.adapter is not None:
        from picoedge.cluster.adapter_transfer import refuse_adapter

        refuse_adapter(links, spec.adapter, spec.part, pack)


def _load(
    config: WorkerConfig,
    spec: GroupSpec,
    pack: Pack,
    adapter: AdapterSlice | None,
    forward_pass: ForwardPass,
    page: ProgressPage,
) -> LoadedModel:
    options = OpenOptions(
        threads=config.threads,
        memory_bytes=config.memory_bytes,
        n_ctx=spec.n_ctx,
        kv_bits=spec.kv_bits,
        window_io=spec.window_io,
        kernels=spec.kernels or None,
        adapter=adapter,
    )
    page.write("loading")

    def on_progress(what: str, done: int, total: int) -> None:
        page.write("loading", done=done, total=total)

    return load_model(
        pack,
        options,
        on_progress,
        part=spec.part,
        reduce=forward_pass.begin,
        gather_logits=forward_pass.gather,
        on_plan=lambda nbytes: _say({"memory": nbytes}),
    )


def _follow(model: LoadedModel, forward_pass: ForwardPass, page: ProgressPage) -> None:
    passes, tokens, busy_s, sync_s = 0, 0, 0.0, 0.0
    page.write("waiting for work")
    while (message := forward_pass.next_input()) is not None:
        x, position, wanted = message
        passes += 1
        page.write("computing", len(x), passes)
        began, waited_s = time.perf_counter(), forward_pass.channel.usage().wait_s
        model.forward_slice(x, position, wanted)
        waited_s = forward_pass.channel.usage().wait_s - waited_s
        sync_s += waited_s  # the wait for input is idle time
        busy_s += time.perf_counter() - began
        tokens += len(x)
        disk_s = model.disk_wait_s
        page.write_work(Work(tokens, max(0.0, busy_s - sync_s - disk_s), sync_s, disk_s))
        page.write("waiting for work", 0, passes)


if __name__ == "__main__":
    sys.exit(main())
