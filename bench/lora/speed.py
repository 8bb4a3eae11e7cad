"""Speed and memory of LoRA: ours on the quantized pack, PEFT's on its values in f32, by turns."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import texts
from bench.children import worker
from bench.lora.models import LoraModels
from bench.report import Measured
from bench.train_turns import Side, Taken, by_turns, speed_row

THREADS, TURN_STEPS, TOKENS = 1, 1, 4 * 256
MEMORY_BYTES = 350 << 20  # of `--memory`: what the row of the peak asks for
OURS, FREE, PEFT = "picoedge", "picoedge without a bound", "PEFT"


def against_peft(prepared: Any, rounds: int) -> list[Measured]:
    """Tokens a second ÷ PEFT's, and our peak in those very runs."""
    models: LoraModels = prepared.models
    pack, folder = models.pack(), models.folder()
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        text, adapter, ids = (str(Path(scratch, name)) for name in ("t.jsonl", "begin", "ids.npy"))
        licence = str(texts.PERPLEXITY_FILE)
        Path(text).write_text(example_of(Path(licence)), encoding="utf-8")
        worker("lora.ours", job="begin", pack=pack, text=licence, ids=ids, adapter=adapter)
        their_request = {"folder": folder, "adapter": adapter, "ids": ids, "threads": THREADS}
        heads: dict[str, float] = worker("lora.theirs", job="head", **their_request)
        head = min(heads, key=lambda each: heads[each])
        our_request = {"job": "speed", "pack": pack, "text": text, "ids": ids, "threads": THREADS}
        sides = [
            Side(PEFT, "lora.theirs", {"job": "speed", "head": head, **their_request}),
            Side(OURS, "lora.ours", {**our_request, "memory_bytes": MEMORY_BYTES}),
            Side(FREE, "lora.ours", our_request),
        ]
        taken = by_turns(sides, 2 * rounds, TURN_STEPS)
    return rows(taken, heads)


def rows(taken: Taken, heads: Mapping[str, float]) -> list[Measured]:
    """Both rows of the turns; `heads`: seconds of each form of the peer's head."""
    raw = {"heads": dict(heads), "peaks_mb": taken.peaks_mb, "turns": taken.turns}
    speed, free = (speed_row("lora_tok_s", side, taken, TOKENS, raw, PEFT) for side in (OURS, FREE))
    note = f"{speed.note}; without a bound of memory {free.value:.3g} ({free.note})"
    return [
        Measured(speed.name, speed.value, speed.runs, raw, note),
        memory_row(taken.peaks_mb),
    ]


def example_of(path: Path) -> str:
    """A text as a line of JSON for `picoedge finetune`."""
    return json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n"


def memory_row(peaks_mb: Mapping[str, float]) -> Measured:
    """Our peak resident, beside those of the others."""
    value = peaks_mb[OURS]
    note = f"without a bound {peaks_mb[FREE]:.0f} MB, PEFT {peaks_mb[PEFT]:.0f}"
    return Measured("lora_peak_mb", value, (value,), dict(peaks_mb), note)
