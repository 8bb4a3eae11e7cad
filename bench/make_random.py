"""Makes one random model in a process of its own: `python -m bench.make_random`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.random_gguf import write_gguf
from bench.random_models import LLAMA_70B, TINYLLAMA
from bench.random_offload import write_offload
from bench.random_pack import layers_that_fit, write_pack


def make_gguf(path: str) -> Path:
    """The TinyLlama-1.1B shape in Q4_1."""
    write_gguf(Path(path), TINYLLAMA)
    return Path(path)


def make_offload(path: str) -> Path:
    """The same in f32, as Accelerate's offload folder."""
    write_offload(Path(path), TINYLLAMA)
    return Path(path)


def make_pack(prefix: str, layers: int | None) -> Path:
    """The Llama-2-70B shape, named after its layers; left as it is where it is. None: what fits."""
    if layers is None:
        layers = layers_that_fit(LLAMA_70B, Path(prefix).parent)
    out = Path(f"{prefix}-{layers:03d}.pico")
    if not out.exists():
        write_pack(out, LLAMA_70B, layers)
    return out


KINDS: dict[str, Callable[..., Path]] = {
    "gguf": make_gguf, "offload": make_offload, "pack": make_pack,
}  # fmt: skip


def main() -> None:
    """Answer one request."""
    request, began = json.load(sys.stdin), time.perf_counter()
    path = KINDS[request.pop("kind")](**request)
    print(json.dumps({"path": str(path), "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
