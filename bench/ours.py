"""picoedge's own forward pass, forced along a reference.

Jobs (JSON on stdin): see the functions named `job_*`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import agreement
from picoedge.kernels.arrays import F32
from picoedge.kernels.loader import load_kernels
from picoedge.model.transformer import Transformer
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import open_source
from picoedge.text.tokenizer.load import load_tokenizer


def open_model(pack: str, threads: int, n_ctx: int, kernels: str | None = None) -> Transformer:
    """A pack, bound to kernels."""
    return Transformer(Pack.open(Path(pack)), load_kernels(kernels, threads), n_ctx)


def job_agreement(
    pack: str, threads: int, reference: str, kernels: str | None = None
) -> dict[str, Any]:
    """How often, and how closely, picoedge follows a reference (see `bench.agreement`)."""
    model = open_model(pack, threads, 1024, kernels)

    def logits_of(ids: list[int]) -> Iterator[F32]:
        return model.forward_all(ids, 0)

    return agreement.follow(reference, logits_of)


def job_tokenize(pack: str, text: str) -> list[int]:
    """Ids of a text."""
    return load_tokenizer(Path(pack)).encode(text)


def job_tensor_bytes(source: str) -> int:
    """Bytes of all tensors of a GGUF."""
    return open_source(Path(source)).tensor_bytes


JOBS: dict[str, Callable[..., Any]] = {
    "agreement": job_agreement,
    "tokenize": job_tokenize,
    "tensor_bytes": job_tensor_bytes,
}


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    print(json.dumps(JOBS[request.pop("job")](**request)))


if __name__ == "__main__":
    main()
