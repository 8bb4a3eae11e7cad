"""`python -m bench train`: training on one board beside PyTorch and PEFT, eager, in f32."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import suite, train_export, train_kills, train_runs, train_turns
from bench.lora import both_ways, facts, speed
from bench.lora.models import LoraModels
from bench.suite import Groups, Suite, Target

TORCH = ("torch",)
PEFT = ("torch", "transformers", "peft")
LLAMA = ("llama_cpp",)

TARGETS = {
    "fast_5m_1t": Target(">= 1.15", 1.3, TORCH),
    "fast_15m_1t": Target(">= 1.15", 1.3, TORCH),
    "fast_5m_2t": Target(">= 1.3", 1.5, TORCH),
    "fast_15m_2t": Target(">= 1.3", 1.5, TORCH),
    "exact_5m_1t": Target(">= 1.05", 1.25, TORCH),
    "exact_15m_1t": Target(">= 1.05", 1.25, TORCH),
    "exact_5m_2t": Target(">= 1.1", 1.4, TORCH),
    "exact_15m_2t": Target(">= 1.1", 1.4, TORCH),
    "numpy_train_5m": Target(">= 1.0", 1.1, TORCH),
    "train_memory_15m": Target("<= 0.6", 0.4, TORCH),
    "compile_5m_1t": Target(">= 0", None, TORCH),  # to be seen beside the others
    "gradient_error": Target("<= 1e-5", 2e-6, TORCH),
    "same_bits": Target("== 1", None),
    "resume_bits": Target("== 5", None),
    "loss_follows": Target("<= 1e-5", 1e-6, TORCH),
    "loss_curve": Target("<= 0.02", 0.01, TORCH),
    "lora_tok_s": Target(">= 1.0", 1.3, PEFT),
    "lora_peak_mb": Target("<= 350", 300, PEFT),
    "lora_learns": Target(">= 18", 20),
    "lora_forgets": Target("<= 1.05", 1.02),
    "peft_both_ways": Target("<= 1e-4", None, PEFT),
    "export_llama_cpp": Target("<= 1e-6", None, LLAMA),
}

# What one measurement answers, in the order they run.
GROUPS: Groups = (
    (("exact_5m_1t", "fast_5m_1t"), train_turns.against_torch("5m", 1)),
    (("exact_5m_2t", "fast_5m_2t"), train_turns.against_torch("5m", 2)),
    (
        ("exact_15m_1t", "fast_15m_1t", "train_memory_15m"),
        train_turns.against_torch("15m", 1),
    ),
    (("exact_15m_2t", "fast_15m_2t"), train_turns.against_torch("15m", 2)),
    (("numpy_train_5m",), train_turns.against_torch("5m", 1, ("numpy",))),
    (("compile_5m_1t",), train_turns.compiled("5m", 1)),
    (("gradient_error",), train_runs.gradient_error),
    (("same_bits",), train_runs.same_bits),
    (("resume_bits",), train_kills.resume_bits),
    (("loss_follows",), train_runs.loss_follows),
    (("loss_curve",), train_runs.loss_curve),
    (("lora_tok_s", "lora_peak_mb"), speed.against_peft),
    (("lora_learns", "lora_forgets"), facts.learned),
    (("peft_both_ways",), both_ways.peft_both_ways),
    (("export_llama_cpp",), train_export.in_llama_cpp),
)


@dataclass(frozen=True)
class Prepared:
    """What measurements take besides the number of rounds."""

    curve_tokens: int | None
    models: LoraModels
    keep: Path | None


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: a peer is missing."""
    return suite.run(Suite("train", __doc__ or "", TARGETS, GROUPS, _options, _prepare), argv)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--curve-tokens", type=int, metavar="N", help="of `loss_curve`, instead of two million"
    )
    parser.add_argument(
        "--smollm2", type=Path, metavar="GGUF", help="instead of the catalogue's, of `lora_*`"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR",
        help="a new folder for the adapter of `lora_learns`, its run's log, and all answers",
    )  # fmt: skip


@contextmanager
def _prepare(options: argparse.Namespace) -> Iterator[Prepared]:
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        yield Prepared(
            options.curve_tokens, LoraModels(Path(scratch), options.smollm2), options.keep
        )
