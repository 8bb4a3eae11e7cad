"""What boards send each other, as sound control messages have it."""

from __future__ import annotations

import base64
from typing import Any

from picoedge.mesh.addresses import SILENT
from picoedge.mesh.identity.identity import KeyPair

KEYS = [KeyPair.of_secret(secret) for secret in ("0" * 39 + "1", "0" * 39 + "2")]
HASH = "ab" * 32
SPEC: dict[str, Any] = {
    "group": "00" * 8,
    "epoch": 7,
    "pack": {"id": HASH, "name": "smollm2"},
    "rank": 1,
    "n_ctx": 512,
    "batch": 64,
    "kv_bits": 16,
    "allreduce": "exchange",
    "wire": "f64",
    "window_io": "auto",
    "kernels": "",
    "transport": "auto",
    "version": 2,
    "ranks": [
        {
            "key": KEYS[i].public,
            "name": f"b{i}",
            "address": "10.0.0.2:9",
            "daemon": "10.0.0.2:7433",
            "attention": [i, i + 1],
            "ffn": [2 * i, 2 * i + 2],
            "head_shards": [3 * i, 3 * i + 3],
        }
        for i in range(2)
    ],
}
STATE: dict[str, Any] = {
    "memory_bytes": 1 << 30,
    "rss_bytes": 1 << 24,
    "queue_length": 0,
    "stalled_on": "",
    "temperature_c": 50.0,
    "throttled": False,
    "relayed": False,
    "transport": "stream",
    "does": "computing",
    "state": "running",
    "holder": "b0",
    "model": "smollm2",
    "attention": [0, 1],
    "ffn": [0, 2],
    "head_shards": [0, 3],
    "work": {"tokens": 5, "compute_s": 1.0, "sync_s": 0.5, "disk_s": 0.0},
    "uses": [{"use": "kept", "bytes": 1 << 20, "holder": "b0", "model": "smollm2", "age_s": 3.5}],
}
MESH = {
    "cluster": "desk",
    "boards": [
        {
            "name": f"b{i}",
            "key": KEYS[i].public,
            "addresses": ["10.0.0.2:7433", "[fe80::1%eth0]:7433", "[::1]"],
            "condition": "alive",
            "report": STATE,
        }
        for i in range(2)
    ],
}
FACTS = {
    "name": "b1",
    "key": KEYS[1].public,
    "cores": 4,
    "compute_bytes_per_s": 1e10,
    "budget_bytes": 1 << 30,
    "fixed_bytes": 1 << 25,
    "disk_bytes_per_s": 1e8,
    "read_io": "direct",
    "numpy": False,
}
LINK = {"latency_s": 1e-4, "bytes_per_s": 1e8}
_TWO = [FACTS, {**FACTS, "name": "b2", "key": KEYS[0].public}]
TOPOLOGY = {"boards": _TWO, "link": LINK}
TOPOLOGIES = (
    TOPOLOGY,
    {"hub": "b2", "boards": _TWO, "links": [{"between": ["b1", "b2"], **LINK}]},
    {"hub": "b2", "boards": [*_TWO, {**FACTS, "name": "b3", "key": ""}], "link": LINK},
)
HELLO = {
    "name": "b1",
    "incarnation": 5,
    "port": 7433,
    "addresses": ["10.0.0.2:7433", "[fe80::1]:7433"],
    "digest": "ab" * 8,
    "epoch": 0,
}
BEAT = {"incarnation": 5, "sequence": 9, "digest": "ab" * 8, "report": STATE}
OFFERED = {
    "name": "smollm2",
    "manifest_bytes": 100,
    "items": 16,
    "held": base64.b64encode(b"ab").decode(),
}
CHUNK = {"data": base64.b64encode(b"hello").decode()}
BOOK = {
    "boards": {
        KEYS[0].public: ["10.0.0.2:7433", "[fe80::1%eth0]:7433"],
        KEYS[1].public: ["10.0.0.3:7433", "[::1]"],
    }
}
KEPT_SLICE = {
    "pack_id": HASH,
    "part": {"attention": [0, 1], "ffn": [0, 2], "head_shards": [0, 3], "owns_head": False},
    "n_ctx": 512,
    "kv_bits": 16,
    "window_io": "auto",
    "kernels": "",
}
REACHED = {
    "daemon": [
        {"address": "10.0.0.3:7433", "why": "nothing listens there"},
        {"address": "[::1]:7433", "why": ""},
    ],
    "worker": {"address": "[fe80::1%eth0]:9", "why": ""},
}
NOT_REACHED: tuple[dict[str, Any], ...] = (
    {"daemon": [{"address": "10.0.0.3:7433", "why": ""}]},
    {
        "daemon": [{"address": "10.0.0.3:7433", "why": ""}],
        "worker": {"address": "[fe80::1%eth0]:9", "why": "nothing listens there"},
    },
    {"daemon": [{"address": "10.0.0.3:7433", "why": SILENT}]},
    {"daemon": [{"address": "10.0.0.3:7433", "why": "no way there"}]},
    {"daemon": []},
)
READ = {
    "id": 3,
    "pack": HASH,
    "item": "layer-000/attention.000",
    "offset": 0,
    "bytes": 4096,
    "version": "ab",
}
MESSAGES: dict[str, Any] = {
    "hello": HELLO,
    "beat": BEAT,
    "gossip": {"roster": {}},
    "peers": BOOK,
    "leave": {"incarnation": 5},
    "join": {"public": KEYS[1].public, "name": "b9"},
    "roster": {},
    "mesh-state": {},
    "ping": {"bytes": 10, "id": 1},
    "pack-offer": {"folder": "/nowhere"},
    "board-facts": {},
    "job-reserve": {"job": "inference", "session": "00" * 8, "slice": KEPT_SLICE},
    "job-start": {"job": "inference", "spec": SPEC},
    "job-release": {"run": "r"},
    "shards-offer": {"pack": HASH},
    "shards-read": READ,
    "relay-open": {"id": 1},
    "relay-data": CHUNK,
    "reply": {"id": 1},
    "error": {"id": 1, "type": "MeshError", "message": "no", "hint": ""},
    "acknowledge": {"of": "job-report"},
    "relay-send": {**CHUNK, "taken": 0},
    "reach-board": {"key": KEYS[1].public},
}
NAMES = (
    "id",
    "speaks",
    "work",
    "held",
    "addresses",
    "report",
    "spec",
    "job",
    "boards",
    "roster",
    "entries",
    "uses",
    "taken",
    "from",
    "acknowledges",
)
