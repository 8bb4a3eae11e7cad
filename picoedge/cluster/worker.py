"""One board's part in a session: `python -m picoedge.cluster.worker`, started by its daemon.

The order comes as one line of JSON on stdin. What the daemon must know goes to stdout, a line
each: {"port": N} once the hub may connect, {"failed": {...}} for what ended it. It holds the
board's slice and nothing else: no embedding, no text, no tokens.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import BoardLostError, ModelError, PicoedgeError, ProtocolError
from picoedge.jobs.progress_page import ProgressPage, Work
from picoedge.jobs.spec import Order
from picoedge.mesh.identity.identity import Identity, cluster_folder, load_identity
from picoedge.mesh.transport.frames import HUB

if TYPE_CHECKING:
    from picoedge.cluster.spec import SessionSpec
    from picoedge.engine.loader import LoadedModel
    from picoedge.mesh.group.collective import Collective
    from picoedge.mesh.identity.keys import KeyPair
    from picoedge.store.pack.reader import Pack

# Until all have joined: others may pull gigabytes first. A hub that is gone is the daemon's affair.
JOIN_S = 24 * 3600.0


def main() -> int:
    """Take the seat, and leave when the session is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's affair
    try:
        order = Order.from_json(json.loads(sys.stdin.readline()))
        identity = load_identity(cluster_folder(os.environ))
        take_seat(order, identity)
    except BoardLostError as error:
        if error.board != order.spec.seats[HUB].name:
            return _failed(error)
    except PicoedgeError as error:
        return _failed(error)
    except MemoryError:
        return _failed(PicoedgeError("out of memory", "allow picoedge run more, or fewer weights"))
    return 0


def _failed(error: PicoedgeError) -> int:
    board = error.board if isinstance(error, BoardLostError) else ""
    _say({"failed": {"message": error.message, "hint": error.hint, "board": board}})
    return 1


def _say(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def take_seat(order: Order, identity: Identity) -> None:
    """Be linked, load, compute until the hub says goodbye. Raises PicoedgeError."""
    from picoedge.jobs.group_links import make_collective, make_links, send_note
    from picoedge.store.pack.reader import Pack

    spec, page = order.spec, ProgressPage(order.page)
    context = zmq.Context()
    pack = Pack.open(pull_missing(context, identity.keys, order, page))
    if pack.identity != spec.pack_id:
        raise ModelError(f"{pack.path} is not the pack that the session runs", "remove it")
    check_shards(spec, pack)
    links = make_links(context, identity.keys, spec, pack)
    try:
        port = links.listen(order.host)
        for rank in range(spec.rank + 1, len(spec.seats)):
            if spec.allreduce == "exchange":
                links.connect(rank, spec.seats[rank].address)
        _say({"port": port})
        links.open(JOIN_S)
        collective = make_collective(links, spec, pack)
        opened = _load(order, pack, collective, page)
        try:
            send_note(links, HUB, _ready(opened))
            _follow(opened, collective, page)
        finally:
            opened.model.close()
    finally:
        links.close()
        context.destroy(linger=0)
        page.write("ended")


def check_shards(spec: SessionSpec, pack: Pack) -> None:
    """Raises ProtocolError where the session deals other shards than the model has."""
    last = spec.seats[-1].part.vocabulary.stop
    runs = [(seat.part.attention, pack.n_attention_shards) for seat in spec.seats]
    runs += [(seat.part.ffn, pack.n_ffn_shards) for seat in spec.seats]
    if last != pack.n_head_shards or any(run.stop > count for run, count in runs):
        raise ProtocolError("a session that deals shards which the model does not have")


def pull_missing(
    context: zmq.Context[zmq.Socket[bytes]], keys: KeyPair, order: Order, page: ProgressPage
) -> Path:
    """Have the slice on this disk, from all boards of the session that have some; where it is."""
    from picoedge.mesh.addresses import parse_address
    from picoedge.mesh.transfer.donor_client import DonorLink
    from picoedge.mesh.transfer.puller import Manner, Pulling, pull
    from picoedge.store.pack.inventory import Wanted
    from picoedge.store.pack.partial import place
    from picoedge.store.pack.reader import Pack

    spec, wanted = order.spec, Wanted(order.spec.part)
    path = order.pack or place(order.shelf, spec.pack_name, spec.pack_id)
    if path.exists() and not Pack.open(path).missing(wanted):
        return path

    def pulled(how: Pulling) -> None:
        page.write("pulling", done=how.done, total=how.total)

    page.write("pulling")
    with ExitStack() as stack:
        sources = []
        for rank, seat in enumerate(spec.seats):
            if rank != spec.rank and seat.daemon:
                link = DonorLink(context, keys, parse_address(seat.daemon), seat.key)
                stack.callback(link.close)
                sources.append((seat.name, link))
        pull(path, spec.pack_id, wanted, sources, Manner(progress=pulled))
    return path


def _load(order: Order, pack: Any, collective: Collective, page: ProgressPage) -> LoadedModel:
    from picoedge.engine.loader import SliceHooks, open_model
    from picoedge.engine.options import OpenOptions

    spec = order.spec
    options = OpenOptions(
        threads=order.threads,
        memory_bytes=order.memory_bytes,
        n_ctx=spec.n_ctx,
        kv_bits=spec.kv_bits,
        window_io=spec.window_io,
        kernels=spec.kernels or None,
    )
    page.write("loading")

    def loaded(what: str, done: int, total: int) -> None:
        page.write("loading", done=done, total=total)

    hooks = SliceHooks(collective.begin, gather_logits=collective.gather)
    return open_model(pack, options, spec.part, loaded, hooks)


def _ready(opened: LoadedModel) -> dict[str, Any]:
    plan = opened.plan.to_json() if opened.plan else None
    return {"ready": True, "batch": opened.model.batch, "plan": plan}


def _follow(opened: LoadedModel, collective: Collective, page: ProgressPage) -> None:
    model, passes, tokens, busy_s, sync_s = opened.model, 0, 0, 0.0, 0.0
    page.write("waiting for work")
    while (given := collective.next_input()) is not None:
        x, position, wanted = given
        passes += 1
        page.write("computing", len(x), passes)
        began, waited_s = time.perf_counter(), collective.usage().wait_s
        model.forward_slice(x, position, wanted)
        sync_s += collective.usage().wait_s - waited_s  # without the wait for the next input
        busy_s += time.perf_counter() - began
        tokens += len(x)
        disk_s = model.disk_wait_s
        page.add_up(Work(tokens, max(0.0, busy_s - sync_s - disk_s), sync_s, disk_s))
        page.write("waiting for work", 0, passes)


if __name__ == "__main__":
    sys.exit(main())
