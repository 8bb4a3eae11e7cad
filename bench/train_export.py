"""A model that was trained here, in llama.cpp: as `picoedge export` writes it, is it the same one?

As a process (`python -m bench.train_export`, JSON on stdin) it writes our logits as a reference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.children import BenchError, picoedge, worker
from bench.report import Measured
from bench.train_kills import sample_text

SETTINGS = (
    "--preset", "1m", "--steps", "150", "--batch-size", "8", "--micro-batch", "2",
    "--length", "128", "--seed", "1",
)  # fmt: skip
TOKENS = 120  # of text that it was not trained on, within its context


def in_llama_cpp(prepared: Any, rounds: int) -> list[Measured]:
    """The mean divergence of llama.cpp's distributions from ours, in nats, over one text."""
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        text, pack, gguf = (str(Path(scratch, name)) for name in ("a.txt", "a.pico", "a.gguf"))
        reference = Path(scratch, "reference")
        reference.mkdir()
        whole = sample_text()
        given, other = whole[: len(whole) // 2], whole[len(whole) // 2 :].decode(errors="ignore")
        Path(text).write_bytes(given)
        picoedge("train", "--text", text, "--out", pack, *SETTINGS)
        picoedge("export", pack, "--to", "gguf", "--out", gguf)
        other = other[: 8 * TOKENS]
        ids = worker("ours", job="tokenize", pack=pack, text=other)
        theirs = worker("peers_llama", job="tokenize", path=gguf, texts=[other])[0]
        if ids != theirs:
            raise BenchError(f"llama.cpp has other tokens: {theirs[:20]}, ours are {ids[:20]}")
        ids = ids[:TOKENS]
        worker("train_export", pack=pack, ids=ids, folder=str(reference))
        found = worker(
            "peers_llama", job="agreement", path=gguf, threads=1, reference=str(reference)
        )
    note = (
        f"nats, {found['positions']} positions of a trained model exported to GGUF; the likeliest "
        f"token is the same at {100 * found['top1_all']:.3g} %"
    )
    return [Measured("export_llama_cpp", found["mean_kl"], (found["mean_kl"],), found, note)]


def main() -> None:
    """Write our logits of all but the last of some ids, in the form of `bench.agreement`."""
    import numpy as np  # what starts the sides is small

    from bench import agreement
    from bench.ours import open_model

    request = json.load(sys.stdin)
    ids, folder = request["ids"], request["folder"]
    model = open_model(request["pack"], 1, len(ids))
    rows = [chunk.copy() for chunk in model.forward_all(ids[:-1], 0)]
    np.save(Path(folder, "logits-0.npy"), np.concatenate(rows))
    agreement.write_texts(folder, [{"ids": ids, "prompt": 1}])
    print(json.dumps(len(rows)))


if __name__ == "__main__":
    main()
