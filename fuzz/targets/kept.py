"""What a person types or keeps: settings, catalogue entries, chats, lists of boards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz.inputs import of_json, of_texts, of_values
from fuzz.mutate import mutate_bytes, mutate_text, mutate_value, to_json
from fuzz.target import Run, Target
from fuzz.targets.board_messages import (
    TOPOLOGIES,
    TOPOLOGY,
)
from picoedge.mesh.cluster_folder import read_json
from picoedge.planner.topology import read_topology
from picoedge.registry.catalogue import load_entry

# -- typed or kept ---------------------------------------------------------------------------------


def _config_toml(folder: Path) -> Run:
    from picoedge.cli.options import config_defaults

    os.environ["XDG_CONFIG_HOME"] = str(folder)
    (folder / "picoedge").mkdir()

    def run(data: bytes) -> None:
        (folder / "picoedge" / "config.toml").write_bytes(data)
        config_defaults()

    return run


def _catalogue(folder: Path) -> Run:
    path = folder / "entry.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_entry(path)

    return run


def _catalogue_samples() -> list[bytes]:
    from picoedge.registry.catalogue import built_in_folder

    return [
        *(path.read_bytes() for path in sorted(built_in_folder().glob("*.toml"))),
        _toml({**ENTRY, "sources": ["hf:someone/a-GGUF:Q4_0"]}),
        _toml(ENTRY),
    ]


ENTRY: dict[str, Any] = {
    "name": "a-1b",
    "description": "d",
    "licence": "mit",
    "bytes": 1 << 20,
    "sha256": "ab" * 32,
    "memory": "250M",
    "least_memory": "130M",
    "gated": True,
    "default": False,
    "measured": False,
    "parameters": "1B",
    "sources": [
        ["wheel:a==1.0/b/c.gguf", "wheel:a2==1.0/d"],
        "hf:someone/a-GGUF/a.gguf",
        "https://example.org/a.gguf",
    ],
}


ODD_SOURCES: tuple[Any, ...] = (
    ["hf:a/b:Q4_0", "hf:a/b:Q4_0"],
    [["hf:a/b:Q4_0", "https://example.org/a"]],
    [],
    [[]],
    [[1]],
)


def _toml(values: Any) -> bytes:
    """Values of JSON as TOML, which writes them alike, but for objects."""
    lines = values.items() if isinstance(values, dict) else [("sources", values)]
    return b"".join(to_json(name) + b" = " + to_json(value) + b"\n" for name, value in lines)


def _mutated_entry(rng: Random, given: Sequence[bytes]) -> bytes:
    if rng.randrange(2):
        text = rng.choice(given).decode("utf-8", "replace")
        return mutate_text(rng, text).encode("utf-8", "surrogatepass")
    if rng.randrange(4) == 0:
        sources = rng.choice(ODD_SOURCES)
        return _toml({**ENTRY, "sources": sources})
    return _toml(mutate_value(rng, ENTRY, ("sources", "memory")))


def _chat_file(folder: Path) -> Run:
    from picoedge.cli.chat_commands import checked_conversation
    from picoedge.errors import UsageError

    def run(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise UsageError("no JSON") from None
        checked_conversation(value, folder / "chat.json")

    return run


def _chat_log(folder: Path) -> Run:
    """The records of a conversation's file, folded, written anew and read again."""
    from picoedge.chats.chat_file import encode_record, parse_records
    from picoedge.chats.conversation import fold, snapshot

    def run(data: bytes) -> None:
        conversation = fold(parse_records(data))
        lines = b"".join(map(encode_record, snapshot(conversation)))
        again = fold(parse_records(lines))
        assert again.messages == conversation.messages
        assert again.prompt == conversation.prompt
        assert again.adapter == conversation.adapter

    return run


RECORDS: list[dict[str, Any]] = [
    {"kind": "chat", "version": 1, "at": 1.7e9, "model": "m", "source": "m"},
    {"kind": "adapter", "path": "/a", "identity": "ab" * 16},
    {"kind": "set", "name": "system", "value": "Be brief."},
    {"kind": "question", "text": "a"},
    {"kind": "answer", "text": "b", "end": "stop"},
    {"kind": "regenerate"},
    {"kind": "answer", "text": "c", "end": "left"},
    {
        "kind": "load",
        "system": "s",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    },
    {"kind": "question", "text": "d"},
]


def _chat_lines(records: Sequence[Any]) -> bytes:
    return b"".join(to_json(record) + b"\n" for record in records)


def _mutated_chat(rng: Random, given: Sequence[bytes]) -> bytes:
    if rng.randrange(4) == 0:
        return mutate_bytes(rng, given[0])
    if rng.randrange(2):
        mutated = mutate_value(rng, RECORDS)
        return _chat_lines(mutated if isinstance(mutated, list) else [mutated])
    chosen = rng.sample(RECORDS, rng.randrange(1, len(RECORDS)))
    return _chat_lines([mutate_value(rng, record) for record in chosen])


CHAT = {
    "model": "m",
    "system": "s",
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}


def _file_json(folder: Path) -> Run:
    path = folder / "f.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read_json(path, "")

    return run


KEPT = (
    Target(
        "facts",
        lambda folder: lambda data: read_topology(data.decode("utf-8", "replace"), "f"),
        **of_values(TOPOLOGIES, ("links", "hub", "numpy", "read_io")),
        modules=("planner/topology.py:read_topology,topology_from_json,_board,_link,_pair,_index",),
        weight=4,
    ),
    Target(
        "config.toml",
        _config_toml,
        **of_texts([b'temperature = 0.7\nthreads = 2\nstop = ["a", "b"]\nsystem = """x"""\n']),
        weight=2,
    ),
    Target(
        "catalogue",
        _catalogue,
        _catalogue_samples,
        _mutated_entry,
        (
            "registry/catalogue.py:load_entry,parse_entry,parse_part,_parse_sources,_parse_source,_parse_memory",
        ),
        weight=2,
    ),
    Target(
        "chat",
        _chat_log,
        lambda: [_chat_lines(RECORDS)],
        _mutated_chat,
        (
            "chats/conversation.py:fold,apply,_begin,_adapt,_set,_ask,_answer,_regenerate,_load,whole_turns",
        ),
        weight=4,
    ),
    Target("conversation", _chat_file, **of_json(CHAT), weight=2),
    Target("json-file", _file_json, **of_json(TOPOLOGY)),
)
