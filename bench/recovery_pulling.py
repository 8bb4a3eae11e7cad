"""On an empty board: `python -m bench.recovery_pulling` pulls a slice, as a session's worker does.

A request in JSON on stdin; the last line is the seconds it took and the bytes of the slice.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import zmq

from picoedge.mesh.addresses import parse_address
from picoedge.mesh.cluster_folder import cluster_folder
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.transfer.puller import PullOptions, pull
from picoedge.mesh.transport.connection import InboxGuard
from picoedge.store.shards import Slice, Wanted


def main() -> None:
    """Answer one request."""
    request, identity = json.loads(sys.stdin.readline()), load_identity(cluster_folder(os.environ))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with ExitStack() as stack:
            sources, guard = [], InboxGuard()
            stack.callback(guard.close)
            for name, address, key in request["donors"]:
                link = DonorClient(context, identity.keys, parse_address(address), key, guard)
                stack.callback(link.close)
                sources.append((name, link))
            print(json.dumps(timed(request, sources)))
    finally:
        context.destroy(linger=0)


def timed(request: dict[str, Any], sources: list[tuple[str, DonorClient]]) -> dict[str, float]:
    """Seconds of a pull, and the bytes that were missing."""
    part = Slice(range(*request["attention"]), range(*request["ffn"]))
    totals = [0]

    def progress(done: int, total: int) -> None:
        totals.append(total)

    began = time.perf_counter()
    pull(Path(request["target"]), request["identity"], Wanted(part), sources,
         PullOptions(progress=progress))  # fmt: skip
    return {"seconds": time.perf_counter() - began, "bytes": max(totals)}


if __name__ == "__main__":
    main()
