"""What every bench does: choose rows, look for what they need, measure in turn, tell."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, report, results
from bench.children import BenchError, Unready, worker
from bench.report import Measured

Measure = Callable[[Any, int], list[Measured]]
"""(what `Suite.prepare` gave, rounds) -> what was measured"""

Groups = Sequence[tuple[tuple[str, ...], Measure]]


@dataclass(frozen=True)
class Target:
    """What a row must and should show, and the packages its peers need."""

    must: str
    aim: float | None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """One bench. `groups`: which rows one measurement answers, in the order they run.

    `prepare` may raise Unready; what it opens is closed after the last measurement.
    """

    name: str
    about: str
    targets: Mapping[str, Target]
    groups: Groups
    options: Callable[[argparse.ArgumentParser], None]
    prepare: Callable[[argparse.Namespace], AbstractContextManager[Any]]
    rounds: int = 5


def parser(suite: Suite) -> argparse.ArgumentParser:
    """The command line of a bench."""
    it = argparse.ArgumentParser(prog=f"python -m bench {suite.name}", description=suite.about)
    it.add_argument("--json", action="store_true", help="end with one JSON object")
    it.add_argument(
        "--rounds", type=int, default=suite.rounds,
        help="turns of each side [default: %(default)s]",
    )  # fmt: skip
    it.add_argument("--rows", help="only these, separated by commas")
    it.add_argument(
        "--row", action="append", metavar="NAME", help="only this one; may be given again"
    )
    it.add_argument(
        "--into", type=Path, metavar="FILE",
        help="merge the rows into the results in FILE; each keeps the commit it was measured on",
    )  # fmt: skip
    it.add_argument(
        "--strict", action="store_true", help="exit with 1 where a row is not as it must be"
    )
    suite.options(it)
    return it


def chosen_rows(targets: Mapping[str, Target], text: str | None) -> list[str]:
    """The rows named in `--rows`, or all. Raises ValueError for an unknown name."""
    names = list(targets) if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in targets:
            raise ValueError(f"no row named {name!r}; there are {', '.join(targets)}")
    return names


def lacking(
    targets: Mapping[str, Target], rows: Iterable[str], installed: Callable[[str], bool]
) -> dict[str, list[str]]:
    """The rows that cannot be measured here, each with the packages it lacks."""
    missing = {row: [p for p in targets[row].needs if not installed(p)] for row in rows}
    return {row: packages for row, packages in missing.items() if packages}


def is_installed(package: str) -> bool:
    """Whether a package could be imported."""
    return importlib.util.find_spec(package) is not None


def run(suite: Suite, argv: Sequence[str]) -> int:
    """0: everything measured; 1: a measurement failed; 2: usage; 3: something is missing."""
    options = parser(suite).parse_args(argv)
    try:
        rows = chosen_rows(suite.targets, ",".join(options.row or []) or options.rows)
    except ValueError as error:
        parser(suite).error(str(error))
    missing = lacking(suite.targets, rows, is_installed)
    if missing:
        for row, packages in missing.items():
            print(f"{row} needs {', '.join(packages)}", file=sys.stderr)
        print("install them: pip install -e '.[bench]'; or choose --rows", file=sys.stderr)
        return 3
    try:
        if options.into is not None:
            results.read_rows(options.into, suite.name)  # refused now rather than after an hour
        with suite.prepare(options) as prepared:
            about = describe_machine()
            measured, failed = measure(suite, rows, prepared, options)
    except Unready as error:
        print(f"bench {suite.name}: {error}", file=sys.stderr)
        return 3
    print(shlex.join(["python", "-m", "bench", suite.name, *argv]))
    tell(suite, measured, failed, about, as_json=options.json)
    if options.strict and not all(row.ok for row in judged(suite, measured)):
        return 1
    if any(not isinstance(why, Unready) for why in failed.values()):
        return 1
    return 3 if failed else 0


def measure(
    suite: Suite, rows: Sequence[str], prepared: Any, options: argparse.Namespace
) -> tuple[list[Measured], dict[str, BenchError]]:
    """What could be measured of the rows, and for the others why not.

    Each is merged into `options.into` at once: an hour's measurements outlive an interrupt.
    """
    measured: list[Measured] = []
    failed: dict[str, BenchError] = {}
    for names, group in suite.groups:
        wanted = [name for name in names if name in rows]
        if not wanted:
            continue
        print(f"measuring {', '.join(wanted)}", file=sys.stderr, flush=True)
        try:
            new = [one for one in group(prepared, max(1, options.rounds)) if one.name in wanted]
        except BenchError as error:
            failed.update(dict.fromkeys(wanted, error))
            continue
        measured += new
        for one in new:
            print(f"{one.name}: {one.value:.4g} {one.note}", file=sys.stderr, flush=True)
        if options.into is not None:
            merge(suite, new, options.into)
    return sorted(measured, key=lambda one: list(suite.targets).index(one.name)), failed


def describe_machine() -> dict[str, Any]:
    """What everything runs on, and how busy it was before."""
    about: dict[str, Any] = worker("machine")
    if is_installed("llama_cpp"):
        about["llama.cpp"] = worker("peers_llama", job="info")["system"].strip(" |")
    return about


def tell(
    suite: Suite, measured: Sequence[Measured], failed: Mapping[str, BenchError],
    about: dict[str, Any], *, as_json: bool,
) -> None:  # fmt: skip
    """The table, what failed, and the JSON line."""
    commit, rows = machine.commit(), judged(suite, measured)
    print(f"commit {commit}")
    print("; ".join(f"{key} {value}" for key, value in about.items()))
    print()
    print(report.table(rows, {m.name: m.note for m in measured}))
    for name, why in failed.items():
        print(f"{name}: not measured: {why}")
    if as_json:
        raw: dict[str, Any] = {m.name: m.raw for m in measured if m.raw}
        if failed:
            raw["failed"] = {name: str(why) for name, why in failed.items()}
        print(report.closing_line(suite.name, commit, about, rows, raw))


def judged(suite: Suite, measured: Sequence[Measured]) -> list[report.Row]:
    """Each measurement beside what it must and should show."""
    targets = suite.targets
    return [report.row(m, targets[m.name].must, targets[m.name].aim) for m in measured]


def merge(suite: Suite, measured: Sequence[Measured], path: Path) -> None:
    """Replace the rows measured in a results file, keep its others, and show them all."""
    commit = machine.commit()
    new = [{**dataclasses.asdict(line), "commit": commit} for line in judged(suite, measured)]
    rows = results.merged(results.read_rows(path, suite.name), new, list(suite.targets))
    results.write_rows(path, suite.name, rows)
    print(f"\n{path}:")
    for row in rows:
        verdict = "yes" if row["ok"] else "NO"
        print(
            f"{row['name']:24} {row['value']:<10.4g} {row['must']:12} {verdict:3} {row['commit']}"
        )
