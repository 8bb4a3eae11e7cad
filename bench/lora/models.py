"""The model of the LoRA rows, in the forms that both sides take; each is made when first asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.children import picoedge, worker
from bench.models import Models

NAME = "smollm2"


class LoraModels:
    """The catalogue's pack, its values in f32 as a Hugging Face folder, and that folder's pack."""

    def __init__(self, scratch: Path, gguf: Path | None) -> None:
        self._scratch, self._models = scratch, Models(scratch, {NAME: gguf})

    def pack(self) -> str:
        """As people have it: quantized."""
        return self._models.pack(NAME)

    def folder(self) -> str:
        """For transformers: the very values that the pack is run with."""
        path = self._scratch / "exported"
        if not path.exists():
            picoedge("export", self.pack(), "--to", "hf", "--dtype", "f32", "--out", str(path))
        return str(path)

    def f32_pack(self) -> str:
        """A pack of that folder which rounds nothing."""
        path = self._scratch / "f32.pico"
        if not path.exists():
            picoedge("pack", self.folder(), "--bits", "32", "--out", str(path))
        return str(path)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts."""
        pack = self.pack()
        return [worker("ours", job="tokenize", pack=pack, text=text) for text in texts]


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    """JSON, one value a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
