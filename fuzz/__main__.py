"""`python -m fuzz [--inputs N] [--seconds S] [--seed K] [--jobs J] [--json] [NAME ...]`

Tries mutated inputs on every parser, or on those named. Inputs that a parser fails on are written
to `--found`, and belong into `fuzz/corpus/` once they are mended. Ctrl-C ends with what was tried.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fuzz.coverage_of import lines_run
from fuzz.run import Tally, parts_of, run_parts
from fuzz.targets import TARGETS
from fuzz.trial import Fault

TELL_S = 10.0  # between two lines of progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 where an input was a fault."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = options.names or list(TARGETS)
    parts = parts_of([TARGETS[name] for name in names], options.inputs, options.seed)
    total, began = sum(len(part.numbers) for part in parts), time.monotonic()
    tally = run_parts(
        parts,
        options.jobs,
        options.seconds,
        lambda fault: _keep(options.found, fault),
        _teller(total),
    )
    covered = {}
    if options.coverage and tally.count >= total:
        covered = {name: lines_run(name, options.coverage, options.seed) for name in names}
    _tell(tally, covered)
    took = f"seed {options.seed}, {time.monotonic() - began:.0f} s"
    print(f"{tally.count:,} inputs, {tally.wrong} faults, {took}")
    if options.json:
        print(_closing_line(tally, options.seed, covered))
    return 1 if tally.wrong else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=1e9, help="at most")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same inputs again")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--coverage", type=int, default=0, metavar="N", help="lines run by N inputs"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz-found"), help="a folder for faults"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}: known are {', '.join(TARGETS)}")
    return options


def _teller(total: int) -> Callable[[int, int], None]:
    """Tells on stderr, now and then, how far a run is."""
    began = told = time.monotonic()

    def tell(tried: int, faults: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < TELL_S and tried < total:
            return
        told, rate = now, tried / max(1e-9, now - began)
        left_min = (total - tried) / max(1e-9, rate) / 60
        print(
            f"{tried:,} of {total:,} inputs, {faults} faults, {rate:,.0f} a second, "
            f"{left_min:,.0f} min left",
            file=sys.stderr,
            flush=True,
        )

    return tell


def _keep(folder: Path, fault: Fault) -> None:
    """Write an input down, and report its fault."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fault.target}-{fault.number}"
    path.write_bytes(fault.data)
    print(f"{path}: {fault.what}", file=sys.stderr, flush=True)


def _tell(tally: Tally, covered: dict[str, dict[str, float]]) -> None:
    for name, tried in tally.tried.items():
        lines = ", ".join(
            f"{module} {share:.0%}" for module, share in covered.get(name, {}).items()
        )
        print(f"{name:24} {tried:>9,} inputs, {len(tally.faults.get(name, ()))} faults  {lines}")


def _closing_line(tally: Tally, seed: int, covered: dict[str, dict[str, float]]) -> str:
    faults = {name: [fault.what for fault in found] for name, found in tally.faults.items()}
    return json.dumps(
        {
            "fuzz_inputs": tally.count,
            "fuzz_faults": tally.wrong,
            "seed": seed,
            "inputs": tally.tried,
            "faults": faults,
            "covered": covered,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
