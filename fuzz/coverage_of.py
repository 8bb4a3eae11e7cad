"""How many lines of a target's modules its inputs run, by the library `coverage`."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import picoedge
from fuzz.target import make_input
from fuzz.targets import TARGETS
from fuzz.trial import try_input

PACKAGE = Path(picoedge.__file__).parent


def lines_run(name: str, inputs: int, seed: int) -> dict[str, float]:
    """The part of the lines of each module that the samples and `inputs` mutated ones run.

    In a process of its own, so that the lines of imports count.
    """
    command = [sys.executable, "-m", "fuzz.coverage_of", name, str(inputs), str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(name: str, inputs: int, seed: int) -> dict[str, float]:
    import coverage

    target = TARGETS[name]
    paths = {module: PACKAGE / module.partition(":")[0] for module in target.modules}
    watch = coverage.Coverage(data_file=None, include=list(map(str, paths.values())))
    with tempfile.TemporaryDirectory() as folder:
        watch.start()
        samples = list(target.samples())
        run = target.open(Path(folder))
        for sample in samples:
            try_input(target, run, sample)
        for number in range(inputs):
            try_input(target, run, make_input(target, samples, seed, number), number)
        watch.stop()
    found = {}
    for module, path in paths.items():
        counted, missed = _lines(watch, path, module.partition(":")[2])
        found[module] = 1 - len(missed) / max(1, len(counted))
        print(f"{module}: not run: {sorted(missed)}", file=sys.stderr)
    return found


def _lines(watch: Any, path: Path, names: str) -> tuple[set[int], set[int]]:
    """Lines of the functions `names`, or of all where it is "", and those that were not run.

    Lines outside functions ran at the import, before.
    """
    inside = lines_of(path, names)
    _, lines, _, missing, _ = watch.analysis2(str(path))
    return inside & set(lines), inside & set(missing)


def lines_of(path: Path, names: str) -> set[int]:
    """The lines of the functions `names`: "f,Class.f". Raises ValueError for one not there."""
    chosen, known, inside = set(names.split(",")) - {""}, set[str](), set[int]()
    for top in ast.parse(path.read_text()).body:
        outer = f"{top.name}." if isinstance(top, ast.ClassDef) else ""
        for node in ast.walk(top):
            if isinstance(node, ast.FunctionDef) and (not chosen or outer + node.name in chosen):
                inside |= set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
                known.add(outer + node.name)
    if chosen - known:
        raise ValueError(f"{path.name} has no function {', '.join(sorted(chosen - known))}")
    return inside


if __name__ == "__main__":
    name, inputs, seed = sys.argv[1:]
    print(json.dumps(_measure(name, int(inputs), int(seed))), flush=True)
    os._exit(0)
