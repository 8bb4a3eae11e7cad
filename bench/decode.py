"""`python -m bench decode`: one board beside llama.cpp and the f32 reference."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import quality, sizes, speed, suite
from bench.models import Models
from bench.suite import Groups, Suite, Target

LLAMA = ("llama_cpp",)
REFERENCE = ("llama_cpp", "torch", "transformers")

TARGETS = {
    "decode_smollm2_1t": Target(">= 1.3", 1.7, LLAMA),
    "decode_smollm2_2t": Target(">= 1.3", 1.7, LLAMA),
    "decode_gemma_2t": Target(">= 1.1", 1.4, LLAMA),
    "prefill_smollm2_1t": Target(">= 1.4", 2.0, LLAMA),
    "prefill_smollm2_2t": Target(">= 1.4", 2.0, LLAMA),
    "prefill_gemma_2t": Target(">= 1.0", 1.4, LLAMA),
    "memory_smollm2": Target("<= 1.1", 0.9, LLAMA),
    "numpy_decode": Target(">= 8", 20),
    "first_token_s": Target("<= 1.5", 0.6),
    "pack_smollm2": Target("<= 1.03", 1.0),
    "pack_gemma": Target("<= 1.03", 1.0),
    "pack_peak_mb": Target("<= 250", 150),
    "ppl_smollm2": Target("0.99-1.005", None, LLAMA),
    "ppl_gemma": Target("0.99-1.005", None, LLAMA),
    "top1_smollm2": Target(">= 1.0", None, REFERENCE),
    "top1_gemma": Target(">= 1.0", None, REFERENCE),
}

# What one measurement answers, in the order they run.
GROUPS: Groups = (
    (("pack_smollm2",), sizes.pack_size("smollm2")),
    (("pack_gemma",), sizes.pack_size("gemma")),
    (("pack_peak_mb",), sizes.pack_peak),
    (("decode_smollm2_1t", "prefill_smollm2_1t"), speed.compared("smollm2", 1)),
    (("decode_smollm2_2t", "prefill_smollm2_2t"), speed.compared("smollm2", 2)),
    (("decode_gemma_2t", "prefill_gemma_2t"), speed.compared("gemma", 2)),
    (("memory_smollm2",), sizes.memory),
    (("numpy_decode",), speed.numpy_decode),
    (("first_token_s",), speed.first_token),
    (("ppl_smollm2",), quality.perplexity("smollm2")),
    (("ppl_gemma",), quality.perplexity("gemma")),
    (("top1_smollm2",), quality.top1("smollm2")),
    (("top1_gemma",), quality.top1("gemma")),
)


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: a peer is missing."""
    return suite.run(Suite("decode", __doc__ or "", TARGETS, GROUPS, _options, _prepare), argv)


def _options(parser: argparse.ArgumentParser) -> None:
    for name in ("smollm2", "gemma"):
        parser.add_argument(
            f"--{name}", type=Path, metavar="GGUF", help="instead of the catalogue's"
        )


@contextmanager
def _prepare(options: argparse.Namespace) -> Iterator[Models]:
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        yield Models(Path(scratch), {"smollm2": options.smollm2, "gemma": options.gemma})
