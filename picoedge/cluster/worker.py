"""The process that runs one slice of a model: `python -m picoedge.cluster.worker`.

Its daemon writes a WorkerConfig to stdin, one line of JSON. The worker prints, a line each,
{"port": N} when the hub may connect, {"transport": …} when it has, and {"failed": {...}} if an
error ends it. It holds the board's slice alone: no embedding, no text, no tokens.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
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
from picoedge.jobs.group_links import connect, send_note
from picoedge.jobs.progress_page import ProgressPage, Work
from picoedge.jobs.relay import Relay, new_endpoint
from picoedge.jobs.spec import WorkerConfig
from picoedge.mesh.identity.identity import Identity, KeyPair, cluster_folder, load_identity
from picoedge.mesh.transport.frames import HUB
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Wanted

if TYPE_CHECKING:
    from picoedge.engine.fit import LoadedModel
    from picoedge.mesh.group.links import Links

# For all ranks to connect: some may pull gigabytes first. If the hub fails, the daemon ends this.
JOIN_S = 24 * 3600.0


def main() -> int:
    """Run the worker until the hub says goodbye; exit code 1 if something else ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the daemon ends its worker itself
    try:
        config = WorkerConfig.from_json(json.loads(sys.stdin.readline()))
        spec = spec_from_json(config.spec)
        spec = spec.with_daemons(config.daemons)
        run_worker(config, spec, load_identity(cluster_folder(os.environ)))
    except BoardLostError as error:
        if error.board != spec.ranks[HUB].name:
            return _failed(error)
    except UnlinkedError as error:
        return _failed(error, unreached=error.keys)
    except PicoedgeError as error:
        return _failed(error)
    except MemoryError:
        return _failed(PicoedgeError("out of memory", "allow picoedge run more, or fewer weights"))
    return 0


def _failed(error: PicoedgeError, unreached: Sequence[str] = ()) -> int:
    board = error.board if isinstance(error, BoardLostError) else ""
    words = {"message": error.message, "hint": error.hint, "board": board}
    _say({"failed": {**words, "unreached": list(unreached)}})
    return 1


def _say(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def run_worker(config: WorkerConfig, spec: GroupSpec, identity: Identity) -> None:
    """Connect to the group, load the slice, compute until the hub says goodbye.

    Raises PicoedgeError.
    """
    page = ProgressPage(config.page)
    context = zmq.Context()
    pack = Pack.open(pull_missing(context, identity.keys, config, spec, page))
    if pack.identity != spec.pack_id:
        raise ModelError(f"{pack.path} is not the pack that the session runs", "remove it")
    check_shards(spec, pack)
    links, forward_pass = join_group(context, identity.keys, spec, pack)
    relays: dict[int, Relay] = {}
    try:
        port = links.listen(config.host, relay := new_endpoint())
        if spec.allreduce == "exchange":
            _connect_workers(links, identity.keys, spec, relays)
        _say({"port": port, "relay": relay})
        links.open(JOIN_S)
        _say({"transport": links.transports()[HUB]})
        with closing(_load(config, spec, pack, forward_pass, page)) as model:
            plan = model.memory_plan.to_json() if model.memory_plan else None
            send_note(links, HUB, {"ready": True, "batch": model.batch, "plan": plan})
            _follow(model, forward_pass, page)
    finally:
        links.close()
        for each in relays.values():
            each.close()
        context.destroy(linger=0)
        page.write("ended")


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
        raise ProtocolError("a session that deals shards which the model does not have")


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

    def on_progress(done: int, total: int) -> None:
        page.write("pulling", done=done, total=total)

    page.write("pulling")
    with ExitStack() as stack:
        donors = []
        for number, rank in enumerate(spec.ranks):
            if number != spec.rank and rank.daemon:
                donor = DonorClient(context, keys, parse_address(rank.daemon), rank.key)
                stack.callback(donor.close)
                donors.append((rank.name, donor))
        pull(path, spec.pack_id, wanted, donors, PullOptions(progress=on_progress))
    return path


def _load(
    config: WorkerConfig, spec: GroupSpec, pack: Pack, forward_pass: ForwardPass, page: ProgressPage
) -> LoadedModel:
    options = OpenOptions(
        threads=config.threads,
        memory_bytes=config.memory_bytes,
        n_ctx=spec.n_ctx,
        kv_bits=spec.kv_bits,
        window_io=spec.window_io,
        kernels=spec.kernels or None,
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
