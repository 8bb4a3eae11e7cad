"""Output: answers, tables and JSON on stdout; notes, warnings and progress on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from picoedge.cli import reports
from picoedge.errors import PicoedgeError
from picoedge.progress import Progress
from picoedge.sanitize import json_escaped, one_line, printable
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.engine.session import Session


_REDRAW_S = 0.1
_BURST_S = 2.0  # between two lines of progress, at the most, while one load goes on


def tolerate_any_text() -> None:
    """Read and write `?` for what an encoding lacks, instead of failing."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def open_closed_streams() -> None:
    """Put /dev/null where a standard stream was closed, so that no file of ours takes its number:
    output of a child or of C to that stream would go into the file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    # Open until the process ends, as any standard stream.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def error_line(message: str, hint: str) -> str:
    """`error: what and where (what to do)`."""
    return one_line(f"error: {message} ({hint})" if hint else f"error: {message}")


def write_answer(piece: str) -> None:
    """A piece of an answer to stdout, at once."""
    sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def write_whole_answer(pieces: Iterable[str]) -> None:
    """All pieces to stdout, and the end of the line, also where an error interrupts them."""
    written = False
    try:
        for piece in pieces:
            write_answer(piece)
            written = True
    except PicoedgeError:
        if written:
            write_answer("\n")
        raise
    write_answer("\n")


def note(text: str, verbose: bool = False) -> None:
    """A line on stderr, if that is a terminal or the line was asked for."""
    if sys.stderr is not None and (verbose or sys.stderr.isatty()):
        print(one_line(text), file=sys.stderr, flush=True)


def warn(text: str, label: str = "note") -> None:
    """A line on stderr, also where it is no terminal."""
    if sys.stderr is not None:
        print(one_line(f"{label}: {text}"), file=sys.stderr, flush=True)


def _progress_text(what: str, done: int, total: int) -> str:
    """`packing smollm2  42 %  41.3 MB of 98 MB`."""
    what = one_line(what)
    if total <= 0:
        return what if done <= 0 else f"{what}  {format_size(done)}"
    share = min(1.0, done / total)
    return f"{what}  {share:4.0%}  {format_size(done)} of {format_size(total)}"


class ProgressLine:
    """A line of the terminal `stream`, redrawn: the stage of the work, and its share done.

    Later output starts on a clean line: this one is erased once a stage is whole, and for an empty
    stage. Loading may begin anew in an answer: then its first line is a new one.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._what, self._drawn_s = "", 0.0
        self.is_in_answer = False

    def draw(self, what: str, done: int, total: int) -> None:
        """A `Progress`."""
        now_s = self._clock()
        if self.is_in_answer and now_s - self._drawn_s >= _BURST_S:
            self._write("\n")
            self._drawn_s = now_s
        if not what or 0 < total <= done:
            self._drawn_s = now_s
            return self.erase()
        if what != self._what or done >= total or now_s - self._drawn_s >= _REDRAW_S:
            self._what, self._drawn_s = what, now_s
            self._write(f"\r\x1b[K{_progress_text(what, done, total)}")

    def erase(self) -> None:
        """Leave a clean line. Idempotent."""
        if self._what:
            self._what = ""
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


@contextmanager
def showing_progress() -> Iterator[Progress | None]:
    """A ProgressLine while the block runs, and for what it started; None without a terminal."""
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield None
        return
    line = ProgressLine(stream)
    try:
        yield line.draw
    finally:
        line.erase()
        line.is_in_answer = True


def tell_end(session: Session, verbose: bool) -> None:
    """After an answer: a note if the context cut it; with `verbose` rates and waiting."""
    if session.stats.context_full:
        warn(f"the context of {session.model.n_ctx} tokens is full: the answer is cut there")
    if verbose:
        for line in reports.timings(session):
            note(line, verbose=True)


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json_escaped(json.dumps(value, indent=2, ensure_ascii=False)))


def print_result(as_json: bool, facts: Mapping[str, Any], line: str) -> None:
    """Print a command's result: as a JSON document, or as a line."""
    if as_json:
        print_json(facts)
    else:
        click.echo(one_line(line))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """`name   value` lines."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{one_line(name).ljust(width)}  {one_line(value)}".rstrip())
