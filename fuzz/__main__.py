"""`python -m fuzz [--inputs N] [--seconds S] [--seed K] [--jobs J] [--json] [NAME ...]`

Tries mutated inputs on every parser, or on those named. Inputs that a parser fails on are written
to `--found`, and belong into `fuzz/corpus/` once they are mended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz.coverage_of import lines_run
from fuzz.run import Fault, kind_of, run_target
from fuzz.targets import TARGETS

CHUNKS = 4  # of a target's inputs, so that the last target does not run alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 where an input was a fault."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=1e9, help="for each part of a target")
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
    names = options.names or list(TARGETS)
    total = sum(TARGETS[name].weight for name in names)
    shares = {name: max(CHUNKS, options.inputs * TARGETS[name].weight // total) for name in names}
    began = time.monotonic()
    tried: dict[str, int] = dict.fromkeys(names, 0)
    faults: dict[str, list[Fault]] = {name: [] for name in names}

    def part(name: str, number: int) -> tuple[str, int, list[Fault]]:
        step = shares[name] // CHUNKS
        numbers = range(step * number, step * (number + 1))
        return name, *run_target(TARGETS[name], options.seed, numbers, options.seconds)

    with ThreadPoolExecutor(options.jobs) as pool:
        parts = [pool.submit(part, name, number) for number in range(CHUNKS) for name in names]
        for each in parts:
            name, count, found = each.result()
            tried[name] += count
            for fault in found:
                _keep(options.found, fault, faults[name])
    covered = {
        name: lines_run(name, options.coverage, options.seed) for name in names if options.coverage
    }
    for name in names:
        lines = ", ".join(
            f"{module} {share:.0%}" for module, share in covered.get(name, {}).items()
        )
        print(f"{name:24} {tried[name]:>9,} inputs, {len(faults[name])} faults  {lines}")
    count, wrong = sum(tried.values()), sum(map(len, faults.values()))
    print(
        f"{count:,} inputs, {wrong} faults, seed {options.seed}, {time.monotonic() - began:.0f} s"
    )
    if options.json:
        print(
            json.dumps(
                {
                    "fuzz_inputs": count,
                    "fuzz_faults": wrong,
                    "seed": options.seed,
                    "inputs": tried,
                    "faults": {
                        name: [f.what for f in found] for name, found in faults.items() if found
                    },
                    "covered": covered,
                }
            )
        )
    return 1 if wrong else 0


def _keep(folder: Path, fault: Fault, known: list[Fault]) -> None:
    """Write an input down, and report its fault, once for each kind of fault."""
    if any(kind_of(each.what) == kind_of(fault.what) for each in known):
        return
    known.append(fault)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fault.target}-{fault.number}"
    path.write_bytes(fault.data)
    print(f"{path}: {fault.what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
