"""The log of a run: one JSON object a line, appended.

    {"step": 1, "loss": 6.94, "norm": 1.2, "rate": 3e-05, "tokens": 4096, "seconds": 0.41}
    {"step": 100, "held_out": 5.1, "best": true}
    {"step": 100, "sample": "Once upon"}
    {"step": 100, "checkpoint": "step-00000100.safetensors"}

`seconds` is of the run so far, pauses between its sessions left out. A run that is resumed from a
checkpoint continues the log from there: lines of later steps are removed, as they come again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from picoedge.errors import PicoedgeError
from picoedge.fields import parse_json
from picoedge.files import replace_file, storage_errors, writing
from picoedge.train.run.loop import RunWatcher
from picoedge.train.step.trainer import StepResult

_REMEDY = "lines are missing until there is room"
_MAX_LINE = 1 << 16  # characters: a sample is shorter


class LogFile(RunWatcher):
    """Appends to a log. A full disk costs lines, and is told once; it never ends a run."""

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic,
        on_fault: Callable[[PicoedgeError], None] = lambda error: None,
    ) -> None:  # fmt: skip
        self._path, self._clock, self._on_fault = path, clock, on_fault
        self._file: TextIO | None = None
        self._began_s = clock()
        self._is_faulty = False
        self._is_torn = False  # the last line may have been written in part

    def begin(self, step: int) -> None:
        """Keep the lines up to `step`, and append from there. Raises StorageError."""
        lines = [line for line in read_log(self._path) if line["step"] <= step]
        seconds = [line["seconds"] for line in lines if "seconds" in line]
        self._began_s = self._clock() - (seconds[-1] if seconds else 0.0)
        with writing(self._path.parent):
            replace_file(self._path, "".join(_text(line) for line in lines).encode())
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        if step:
            self.write({"step": step, "resumed": True})

    def write(self, values: dict[str, Any]) -> None:
        """Append a line."""
        if self._file is None:
            return
        try:
            with storage_errors(self._path, _REMEDY):
                self._file.write(("\n" if self._is_torn else "") + _text(values))
                self._file.flush()
            self._is_torn = False
        except PicoedgeError as error:
            if not self._is_faulty:
                self._on_fault(error)
            self._is_faulty = self._is_torn = True
            self._reopen()

    def _reopen(self) -> None:
        """Drop what a failed write left in the buffer."""
        assert self._file is not None
        with suppress(OSError):
            self._file.close()
        self._file = None
        with suppress(OSError):
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

    def stepped(self, result: StepResult, tokens: int) -> None:
        """See `RunWatcher`."""
        figures = {"loss": result.loss, "norm": result.norm, "rate": result.rate}
        rounded = {name: float(f"{value:.7g}") for name, value in figures.items()}
        seconds = round(self._clock() - self._began_s, 2)
        self.write({"step": result.step, **rounded, "tokens": tokens, "seconds": seconds})

    def evaluated(self, step: int, loss: float, *, is_best: bool) -> None:
        """See `RunWatcher`."""
        held_out = float(f"{loss:.7g}") if math.isfinite(loss) else None  # JSON has no NaN
        self.write({"step": step, "held_out": held_out, "best": is_best})

    def saved(self, step: int, path: Path) -> None:
        """See `RunWatcher`."""
        self.write({"step": step, "checkpoint": path.name})

    def not_saved(self, step: int, error: PicoedgeError) -> None:
        """See `RunWatcher`."""
        self.write({"step": step, "not_saved": error.message})

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The sound lines of a log, each with its "step"; [] where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return list(_sound(file))
    except OSError:
        return []


def _sound(file: TextIO) -> Iterator[dict[str, Any]]:
    while line := file.readline(_MAX_LINE):
        try:
            values = parse_json(line)
        except (ValueError, RecursionError):  # cut short by a power cut
            continue
        if isinstance(values, dict) and type(values.get("step")) is int:
            for name in ("loss", "held_out", "seconds"):
                if type(values.get(name)) not in (int, float):
                    values.pop(name, None)
            yield values
