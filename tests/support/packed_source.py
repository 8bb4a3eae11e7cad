"""A source of weights, packed beside it."""

from __future__ import annotations

from pathlib import Path

from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.source import ModelSource, open_source


def packed(source: Path, bits: int | None = None) -> Pack:
    target = source.with_suffix(".pico")
    pack_source(open_source(source), target, bits=bits)
    return Pack.open(target)


def write_text(source: ModelSource, folder: Path) -> None:
    """The least files of text: a pack that is only moved needs no tokenizer."""
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("")
