"""One adapter, one f32 model, two programs: whether they give the same logits."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import texts
from bench.children import picoedge, worker
from bench.lora.facts import examples, read_facts
from bench.lora.models import LoraModels, write_lines
from bench.report import Measured

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MADE_BY_PEFT: Mapping[str, Mapping[str, Any]] = {
    "q-v": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True},
    "some-layers": {
        "r": 6, "lora_alpha": 6, "target_modules": ["o_proj", "down_proj"],
        "layers_to_transform": [0, 7, 29], "rank_pattern": {"layers.7.mlp.down_proj": 3},
    },
}  # fmt: skip
SPREAD = 0.02  # of B: about that of `lora_learns` after training
TRAINING = (
    "--steps",
    "8",
    "--rate",
    "0.01",
    "--batch-size",
    "2",
    "--rehearsal",
    "0",
    "--threads",
    "1",
)


def peft_both_ways(prepared: Any, rounds: int) -> list[Measured]:
    """The worst position of texts, ours against PEFT's, with adapters of both."""
    models: LoraModels = prepared.models
    pack, folder, ids = models.f32_pack(), models.folder(), models.ids(texts.PROMPTS)
    errors: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        made = {str(Path(scratch, name)): chosen for name, chosen in MADE_BY_PEFT.items()}
        worker("lora.theirs", job="make", folder=folder, adapters=made, spread=SPREAD)
        trained, data = Path(scratch, "trained-here"), Path(scratch, "facts.jsonl")
        write_lines(data, examples(read_facts()))
        picoedge("finetune", pack, "--data", str(data), "--out", str(trained), *TRAINING)
        for adapter in (str(trained), *made):
            logits = Path(scratch, "logits")
            logits.mkdir(exist_ok=True)
            into = {"folder": folder, "adapter": adapter, "texts": ids, "into": str(logits)}
            worker("lora.theirs", job="logits", **into)
            errors[Path(adapter).name] = worker(
                "lora.ours", job="error", pack=pack, adapter=adapter, texts=ids,
                reference=str(logits),
            )  # fmt: skip
    return [row(errors)]


def row(errors: Mapping[str, Mapping[str, float]]) -> Measured:
    """The worst of all adapters; the note says how much each of them changes."""
    worst = {name: each["worst"] for name, each in errors.items()}
    note = "; ".join(
        f"{name} {each['worst']:.2g}, it moves logits by {each['moved']:.2g} at least"
        for name, each in errors.items()
    )
    return Measured(
        "peft_both_ways", max(worst.values()), tuple(worst.values()), dict(errors), note
    )
