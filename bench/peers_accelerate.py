"""Transformers with Accelerate's disk offload: f32 weights, read from the disk for each token.

`python -m bench.peers_accelerate`: one request on stdin.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from typing import Any

from bench.limits import Counter
from bench.peers_cache import new_cache
from bench.random_models import Shape


def build(shape: Shape, folder: str) -> Any:
    """The model without weights, which are fetched from `folder` when a module runs."""
    accelerate = importlib.import_module("accelerate")
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        rms_norm_eps=shape.rms_norm_eps,
        tie_word_embeddings=False,
    )
    with accelerate.init_empty_weights():
        model = transformers.LlamaForCausalLM(config)
    return accelerate.disk_offload(model.eval(), folder, execution_device="cpu")


def main() -> None:
    """Seconds and bytes of each token after the first, decoding one by one."""
    request = json.load(sys.stdin)
    torch = importlib.import_module("torch")
    torch.set_num_threads(request["threads"])
    counter = Counter(**request["counter"])
    model = build(Shape(**request["shape"]), request["folder"])
    moments, cache = [], new_cache(model)
    with torch.no_grad():
        for token in range(1, request["n"] + 1):
            given = torch.tensor([[token]])
            row = model(input_ids=given, **cache).logits[0, -1]
            if not bool(torch.isfinite(row).all()):
                raise SystemExit("the logits are not finite")
            moments.append((time.perf_counter(), counter.read()))
    pairs = list(itertools.pairwise(moments))
    print(json.dumps({
        "seconds": [b[0] - a[0] for a, b in pairs], "bytes": [b[1] - a[1] for a, b in pairs],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
