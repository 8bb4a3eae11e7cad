"""llama.cpp under limits, as lean as it can be: nothing in the process but its own library.

`python -m bench.peers_llama_paced`: one request on stdin. The package's own start imports NumPy,
Jinja and more (22 MB), which a limit would charge to llama.cpp; only its ctypes layer is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import sys
import time
import types
from typing import Any

from bench.limits import Counter
from bench.peers_llama import Peer

PROMPT, N_BATCH = 8, 32  # small batches: small buffers, so that more of the file stays cached
_STEP = 7919  # a prime: the ids of a run are spread over the vocabulary


def bare_api() -> Any:
    """The package's ctypes layer, without what the package imports when it is imported."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("llama_cpp is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def main() -> None:
    """Seconds and bytes of each token after the first, decoding one by one."""
    request = json.load(sys.stdin)
    counter, n = Counter(**request["counter"]), request["n"]
    peer = Peer(
        request["path"], request["n_ctx"], request["threads"], flash=True,
        api=bare_api(), n_batch=N_BATCH,
    )  # fmt: skip
    ids = [(1 + i * _STEP) % peer.n_vocab for i in range(PROMPT + n)]
    peer.evaluate(ids[:PROMPT])
    moments = []
    for token in ids[PROMPT:]:
        peer.evaluate([token])
        moments.append((time.perf_counter(), counter.read()))
    pairs = list(itertools.pairwise(moments))
    print(json.dumps({
        "seconds": [b[0] - a[0] for a, b in pairs], "bytes": [b[1] - a[1] for a, b in pairs],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
