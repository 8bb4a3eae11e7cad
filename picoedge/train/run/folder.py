"""The folder of a run, beside its result: NAME.run/ of NAME.pico.

config.toml        all that decides the result; `picoedge train --config` repeats the run
log.jsonl          a line for each step, evaluation, sample and checkpoint
checkpoints/       the last good ones: weights and moments
best.safetensors   the weights of the lowest held-out loss
rehearsal.json     of `picoedge finetune`: the text that the model wrote to stay as it is
lock               held by the process that trains
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from picoedge.errors import PicoedgeError, StorageError
from picoedge.files import make_folder, take_lock, writing
from picoedge.train.state.checkpoints import Checkpoints, Saved, read_saved, write_saved

CONFIG, LOG, BEST = "config.toml", "log.jsonl", "best.safetensors"
_OWN_TEXT = "rehearsal.json"
_LOCK = "lock"
_LATER = "wait until it ends, or stop it with Ctrl-C in its terminal"


def folder_of(out: Path) -> Path:
    """The run's folder of a result: NAME.run beside NAME.pico, or beside an adapter's NAME."""
    return out.with_name(f"{out.name.removesuffix('.pico')}.run")


class RunFolder:
    """An open run folder: this process alone trains in it. Close it after use."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError where it cannot be made, PicoedgeError where another run has it."""
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._is_new = not path.exists()
        with writing(path):
            make_folder(path)
            self._lock: BinaryIO | None = open(path / _LOCK, "ab")  # noqa: SIM115
        if not take_lock(self._lock.fileno()):
            self.close()
            raise PicoedgeError(f"another process trains in {path}", _LATER)
        self.checkpoints.clear_partial()
        with suppress(OSError):
            self.best.with_name(f".{BEST}.new").unlink()

    @property
    def config(self) -> Path:
        """The settings that repeat the run."""
        return self.path / CONFIG

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.path / LOG

    @property
    def best(self) -> Path:
        """The weights of the lowest held-out loss, if any were kept."""
        return self.path / BEST

    @property
    def own_text(self) -> Path:
        """The text that the model wrote itself, where it rehearses one."""
        return self.path / _OWN_TEXT

    def save(self, step: int, saved: Saved) -> Path:
        """See `RunStore`."""
        return self.checkpoints.save(step, saved)

    def save_best(self, saved: Saved) -> Path:
        """See `RunStore`."""
        write_saved(self.best, saved)
        return self.best

    def read_best(self) -> Saved | None:
        """The state that `save_best` kept; None: nothing that is sound."""
        with suppress(PicoedgeError):
            return read_saved(self.best)
        return None

    def discard(self) -> None:
        """Remove a folder that was made just now, for a run that could not begin; close it."""
        if self._is_new:
            shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Give up the lock. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def has_run(path: Path) -> bool:
    """Whether a folder has a checkpoint."""
    return bool(Checkpoints(path / "checkpoints").steps())


def refuse_unwritable(out: Path) -> None:
    """Find out now, and not after hours, that a result cannot be written. Raises StorageError."""
    if out.exists():
        raise StorageError(f"{out} exists", "choose another --out, or remove it")
    with writing(out.parent):
        make_folder(out.absolute().parent)
