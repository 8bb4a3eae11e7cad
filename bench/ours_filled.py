"""picoedge with its context full: `python -m bench.ours_filled`, one request on stdin.

The cache of keys and values is written from end to end, so that all of its memory is taken, and
the last tokens of the context are decoded.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.engine.open_options import OpenOptions
from picoedge.engine.opening import open_model, open_session
from picoedge.model.transformer import Transformer
from picoedge.store.reader import Pack
from picoedge.store.slices import Slice

TOKEN = 300


def fill(model: Transformer) -> int:
    """Write every byte of the cache; returns how many there are."""
    written = 0
    for cache in model._caches.values():
        for array in vars(cache).values():
            if isinstance(array, np.ndarray):
                array.fill(1)
                written += array.nbytes
    return written


def opened(pack: Path, options: OpenOptions, part: Slice | None) -> tuple[Transformer, Any]:
    """(model, plan): a whole board with its tokenizer, or one that has a slice and no text."""
    if part is None:
        session = open_session(pack, options, with_template=False)
        assert isinstance(session.model, Transformer)
        return session.model, session.plan
    board = open_model(Pack.open(pack), options, part)
    return board.model, board.plan


def main() -> None:
    """Seconds of each of the last tokens, the plan, and the bytes of the cache."""
    request = json.load(sys.stdin)
    options = OpenOptions(
        threads=request["threads"], memory_bytes=request["memory"], n_ctx=request["n_ctx"],
        kv_bits=8,
    )  # fmt: skip
    runs = request["slice"]
    part = Slice(range(runs[0]), range(runs[1])) if runs else None
    model, plan = opened(Path(request["path"]), options, part)
    cached, seconds = fill(model), []
    for position in range(request["n_ctx"] - request["n"], request["n_ctx"]):
        began = time.perf_counter()
        model.forward([TOKEN], position)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({
        "s_per_token": sum(seconds[1:]) / len(seconds[1:]), "seconds": seconds,
        "cache_bytes": cached, "plan": plan.to_json() if plan else None,
    }))  # fmt: skip
    model.close()


if __name__ == "__main__":
    main()
