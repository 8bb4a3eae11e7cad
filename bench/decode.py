"""`python -m bench decode`: one board beside llama.cpp and the f32 reference."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, quality, report, sizes, speed
from bench.children import BenchError, worker
from bench.models import Models
from bench.report import Measured

LLAMA = ("llama_cpp",)
REFERENCE = ("llama_cpp", "torch", "transformers")

Measure = Callable[[Models, int], list[Measured]]


@dataclass(frozen=True)
class Target:
    """What a row must and should show, and the packages its peers need."""

    must: str
    aim: float | None
    needs: tuple[str, ...] = ()


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
GROUPS: tuple[tuple[tuple[str, ...], Measure], ...] = (
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


def parser() -> argparse.ArgumentParser:
    """The command line of this bench."""
    it = argparse.ArgumentParser(prog="python -m bench decode", description=__doc__)
    it.add_argument("--json", action="store_true", help="end with one JSON object")
    it.add_argument("--rounds", type=int, default=5, help="turns of each side [default: 5]")
    it.add_argument("--rows", help="only these, separated by commas")
    it.add_argument("--smollm2", type=Path, metavar="GGUF", help="instead of the catalogue's")
    it.add_argument("--gemma", type=Path, metavar="GGUF", help="instead of the catalogue's")
    return it


def chosen_rows(text: str | None) -> list[str]:
    """The rows named in `--rows`, or all. Raises ValueError naming one that is unknown."""
    names = list(TARGETS) if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TARGETS:
            raise ValueError(f"no row named {name!r}; there are {', '.join(TARGETS)}")
    return names


def lacking(rows: Iterable[str], installed: Callable[[str], bool]) -> dict[str, list[str]]:
    """The rows that cannot be measured here, each with the packages it lacks."""
    missing = {row: [p for p in TARGETS[row].needs if not installed(p)] for row in rows}
    return {row: packages for row, packages in missing.items() if packages}


def is_installed(package: str) -> bool:
    """Whether a package could be imported."""
    return importlib.util.find_spec(package) is not None


def main(argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: a peer is missing."""
    options = parser().parse_args(argv)
    try:
        rows = chosen_rows(options.rows)
    except ValueError as error:
        parser().error(str(error))
    missing = lacking(rows, is_installed)
    if missing:
        for row, packages in missing.items():
            print(f"{row} needs {', '.join(packages)}", file=sys.stderr)
        print("install them: pip install -e '.[bench]'; or choose --rows", file=sys.stderr)
        return 3
    about = describe_machine()
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        given = {"smollm2": options.smollm2, "gemma": options.gemma}
        measured, failed = measure(rows, Models(Path(scratch), given), max(1, options.rounds))
    print(shlex.join(["python", "-m", "bench", "decode", *argv]))
    tell(measured, failed, about, as_json=options.json)
    return 1 if failed else 0


def measure(
    rows: Sequence[str], models: Models, rounds: int
) -> tuple[list[Measured], dict[str, str]]:
    """What could be measured of the rows, and for the others why not."""
    measured: list[Measured] = []
    failed: dict[str, str] = {}
    for names, group in GROUPS:
        wanted = [name for name in names if name in rows]
        if not wanted:
            continue
        print(f"measuring {', '.join(wanted)}", file=sys.stderr, flush=True)
        try:
            measured += [one for one in group(models, rounds) if one.name in wanted]
        except BenchError as error:
            failed.update(dict.fromkeys(wanted, str(error)))
    return sorted(measured, key=lambda one: list(TARGETS).index(one.name)), failed


def describe_machine() -> dict[str, Any]:
    """What everything runs on, and how busy it was before."""
    about: dict[str, Any] = worker("machine")
    if is_installed("llama_cpp"):
        about["llama.cpp"] = worker("peers_llama", job="info")["system"].strip(" |")
    return about


def tell(
    measured: Sequence[Measured], failed: dict[str, str], about: dict[str, Any], *, as_json: bool
) -> None:
    """The table, what failed, and the JSON line."""
    commit = machine.commit()
    rows = [report.row(m, TARGETS[m.name].must, TARGETS[m.name].aim) for m in measured]
    print(f"commit {commit}")
    print("; ".join(f"{key} {value}" for key, value in about.items()))
    print()
    print(report.table(rows, {m.name: m.note for m in measured}))
    for name, why in failed.items():
        print(f"{name}: not measured: {why}")
    if as_json:
        raw: dict[str, Any] = {m.name: m.raw for m in measured if m.raw}
        if failed:
            raw["failed"] = failed
        print(report.closing_line("decode", commit, about, rows, raw))
