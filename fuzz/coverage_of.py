"""How many lines of a target's modules its inputs run, by the library `coverage`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import picoedge
from fuzz.run import try_input
from fuzz.target import make_input
from fuzz.targets import TARGETS

PACKAGE = Path(picoedge.__file__).parent


def lines_run(name: str, inputs: int, seed: int) -> dict[str, float]:
    """The part of the lines of each module that the samples and `inputs` mutated ones run.

    In a process of its own, so that the lines of imports count.
    """
    import json
    import subprocess
    import sys

    command = [sys.executable, "-m", "fuzz.coverage_of", name, str(inputs), str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(name: str, inputs: int, seed: int) -> dict[str, float]:
    import signal

    import coverage

    from fuzz.run import _on_alarm

    signal.signal(signal.SIGALRM, _on_alarm)
    target = TARGETS[name]
    samples = list(target.samples())
    watch = coverage.Coverage(data_file=None, include=[str(PACKAGE / m) for m in target.modules])
    with tempfile.TemporaryDirectory() as folder:
        run = target.open(Path(folder))
        watch.start()
        for sample in samples:
            try_input(target, run, sample)
        for number in range(inputs):
            try_input(target, run, make_input(target, samples, seed, number), number)
        watch.stop()
    return {module: _share(watch, PACKAGE / module) for module in target.modules}


def _share(watch: object, path: Path) -> float:
    """Lines inside functions that were run: those outside ran at the import, before."""
    import ast

    inside: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            inside |= set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
    _, lines, _, missing, _ = watch.analysis2(str(path))  # type: ignore[attr-defined]
    counted, missed = inside & set(lines), inside & set(missing)
    return 1 - len(missed) / max(1, len(counted))


if __name__ == "__main__":
    import json
    import os
    import sys

    name, inputs, seed = sys.argv[1:]
    print(json.dumps(_measure(name, int(inputs), int(seed))), flush=True)
    os._exit(0)
