"""Makes one model of the mesh's benches in a process of its own: `python -m bench.mesh_make`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.mesh_peer_files import write_distributed_llama, write_hugging_face
from bench.random_models import CHAT_TEMPLATE, SMOLLM2, TINYLLAMA, Shape
from bench.random_pack import write_pack


def write_chat(path: Path, _: Shape) -> None:
    """A pack of SmolLM2's shape that has a chat template."""
    write_pack(path, SMOLLM2, template=CHAT_TEMPLATE)


KINDS: dict[str, Callable[[Path, Shape], object]] = {
    "pack": write_pack,
    "chat": write_chat,
    "distributed_llama": write_distributed_llama,
    "hugging_face": write_hugging_face,
}


def main() -> None:
    """Answer one request: a shape in some form, complete or not at all."""
    request, began = json.load(sys.stdin), time.perf_counter()
    path = Path(request["path"])
    part = path.parent / "part" / path.name  # a pack is called what its folder is
    part.parent.mkdir(exist_ok=True)
    KINDS[request["kind"]](part, TINYLLAMA)
    part.rename(path)
    part.parent.rmdir()
    print(json.dumps({"path": str(path), "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
