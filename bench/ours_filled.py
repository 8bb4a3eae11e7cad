"""picoedge with its context full: `python -m bench.ours_filled`, one request on stdin.

The cache of keys and values and the buffers of a chunk of the prompt are written from end to end,
so that all of their memory is taken; then the end of the context is run: a short prompt and the
last tokens.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from picoedge.engine.open import load_model, open_pack, open_session
from picoedge.engine.options import OpenOptions
from picoedge.engine.session import Prompt
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice

TOKEN = 300
PROMPT = 32  # tokens: a chunk of 256 takes minutes of computing at 70B


def fill(model: Transformer) -> int:
    """Write every byte of the cache; returns how many there are."""
    written = 0
    for cache in model._caches.values():
        for array in vars(cache).values():
            if isinstance(array, np.ndarray):
                array.fill(1)
                written += array.nbytes
    return written


def touch(model: Transformer) -> int:
    """Write every byte of the buffers of a chunk; returns how many there are."""
    written = 0
    for array in _buffers(model):
        array.fill(1)
        written += array.nbytes
    return written


def _buffers(model: Transformer) -> Iterator[np.ndarray[Any, Any]]:
    """Activations, then what the kernels quantize them into."""
    yield from (a for a in vars(model._space).values() if isinstance(a, np.ndarray))
    for scratch in getattr(model.kernels, "_scratch", {}).values():
        yield from (scratch,) if isinstance(scratch, np.ndarray) else scratch.values()


def opened(pack: Path, options: OpenOptions, part: Slice | None) -> tuple[Transformer, Any]:
    """(model, plan): a whole board with its tokenizer, or a slice with all of the head, no text."""
    if part is None:
        prompt = Prompt([TOKEN])
        session = open_session(open_pack(pack, options, template=False), load_model, prompt)
        model = session.model.slice
        return model, model.memory_plan
    held = Pack.open(pack)
    part = dataclasses.replace(part, head_shards=held.all_shards.head_shards)
    model = load_model(held, options, part=part)
    return model, model.memory_plan


def main() -> None:
    """Seconds of each of the last tokens, the plan, and the bytes of the cache and buffers."""
    request = json.load(sys.stdin)
    options = OpenOptions(
        threads=request["threads"], memory_bytes=request["memory"], n_ctx=request["n_ctx"],
        kv_bits=8,
    )  # fmt: skip
    runs = request["slice"]
    part = Slice(range(runs[0]), range(runs[1])) if runs else None
    model, plan = opened(Path(request["path"]), options, part)
    # The prompt is shorter than a chunk can be, so what it leaves untouched is written here.
    cached, buffers, seconds = fill(model), touch(model), []
    first = request["n_ctx"] - request["n"]
    prompt = min(model.batch, PROMPT, first)
    model.forward([TOKEN] * prompt, first - prompt)
    for position in range(first, request["n_ctx"]):
        began = time.perf_counter()
        model.forward([TOKEN], position)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({
        "s_per_token": sum(seconds[1:]) / len(seconds[1:]), "seconds": seconds,
        "cache_bytes": cached, "buffer_bytes": buffers, "prompt_tokens": prompt,
        "plan": plan.to_json() if plan else None,
    }))  # fmt: skip
    model.close()


if __name__ == "__main__":
    main()
