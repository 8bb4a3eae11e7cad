"""What a worker has loaded, and the memory it takes, while it waits for its group's other boards.

`pytest -s tests/cluster/test_worker.py` prints the memory, where byte code is cached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shelf_models import packed_tiny

from picoedge.cluster.spec import GroupSpec, RankSpec
from picoedge.engine.options import TRANSPORT_CHOICES
from picoedge.jobs.progress_page import new_page
from picoedge.jobs.spec import INFERENCE, WorkerConfig
from picoedge.mesh.group.peer_link import TransportChoice
from picoedge.mesh.identity.admission import found_cluster
from picoedge.mesh.identity.identity import KeyPair
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice
from picoedge.units import MB

# The worker's own start: it says its port when it listens, and then waits for the hub.
WORKER = """
import json, os, sys
from picoedge.cluster import worker

def say(line):
    status = open("/proc/self/status").read()
    print(json.dumps({**line, "modules": [*sys.modules], "status": status}), flush=True)
    os._exit(0)

worker._say = say
worker.main()
"""
LIBRARIES = "import json, sys, numpy, zmq; print(json.dumps([*sys.modules]))"
# Loaded later, or by other processes; a name stands for the modules below it, too.
NOT_YET = (
    "asyncio", "click", "concurrent", "cryptography", "email", "gguf", "hashlib", "http", "jinja2",
    "logging", "nacl", "numpy.fft", "numpy.ma", "numpy.polynomial", "numpy.random",
    "picoedge.cli", "picoedge.daemon", "picoedge.engine.fit", "picoedge.engine.session",
    "picoedge.mesh.node", "picoedge.mesh.transfer", "picoedge.planner", "picoedge.registry",
    "picoedge.text", "psutil", "rich", "sentencepiece", "shutil", "ssl", "subprocess", "tempfile",
    "tokenizers", "tomllib", "torch", "transformers", "zeroconf", "zmq.utils.monitor",
)  # fmt: skip


def waiting_worker(folder: Path, transport: TransportChoice) -> tuple[set[str], str]:
    """Modules of a worker that waits for its hub, and its /proc/self/status."""
    pack = Pack.open(packed_tiny(folder))
    found_cluster(folder / "keys", "test", "b1")
    heads, half = pack.n_head_shards, pack.n_ffn_shards // 2
    parts = (
        Slice(range(1), range(half), range(heads), owns_head=True),
        Slice(range(1, 3), range(half, pack.n_ffn_shards), range(heads, heads)),
    )
    ranks = tuple(RankSpec(KeyPair.new().public, f"b{i}", part) for i, part in enumerate(parts))
    spec = GroupSpec(
        "ab" * 8, 1, pack.identity, pack.name, 1, ranks, 64, 8, transport=transport, version=2
    )
    with new_page() as page:
        config = WorkerConfig(
            INFERENCE, spec.to_json(), pack.path, folder, "127.0.0.1", page, 1 << 30, 1
        )
        done = subprocess.run(
            [sys.executable, "-c", WORKER],
            input=json.dumps(config.to_json()) + "\n",
            env={**os.environ, "PICOEDGE_CLUSTER": str(folder / "keys")},
            pass_fds=(int(page.name),),
            capture_output=True,
            text=True,
            timeout=60,
        )
    line = json.loads(done.stdout)
    assert line["port"], done.stderr
    return set(line["modules"]), line["status"]


@pytest.mark.parametrize("transport", TRANSPORT_CHOICES)
def test_a_waiting_worker_has_loaded_what_it_needs_alone(
    transport: TransportChoice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules, status = waiting_worker(tmp_path, transport)
    libraries = subprocess.run(
        [sys.executable, "-c", LIBRARIES], capture_output=True, check=True, timeout=60
    )
    own = modules - set(json.loads(libraries.stdout))  # older ones load more by themselves
    early = {name for name in own if any(f"{name}.".startswith(f"{each}.") for each in NOT_YET)}
    assert early == set()
    lines = [line.split() for line in status.splitlines()]
    sizes = {fields[0]: int(fields[1]) * 1024 / MB for fields in lines if fields[-1] == "kB"}
    with capsys.disabled():
        memory = ", ".join(f"{sizes[f'{name}:']:.1f} {name}" for name in ("VmRSS", "RssAnon"))
        print(f"\na worker that waits ({transport}), MB: {memory}; {len(modules)} modules")
