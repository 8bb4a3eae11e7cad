"""Output: answers, tables and JSON on stdout; notes, warnings and progress on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import reports
from picoedge.errors import PicoedgeError
from picoedge.progress import Progress
from picoedge.sanitize import json_escaped, one_line, printable
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.engine.session import Session


_REDRAW_S = 0.1


def tolerate_any_text() -> None:
    """Read and write `?` for what an encoding lacks, instead of failing."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def open_closed_streams() -> None:
    """Put /dev/null where a standard stream was closed, so that no file of ours takes its number:
    what is written to the stream, by a child or by C, would go into that file.
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


@contextmanager
def showing_progress() -> Iterator[Progress | None]:
    """A line of the terminal while the block runs, redrawn: the stage of the work, its share done.

    None where stderr is no terminal.
    """
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield None
        return
    drawn, drawn_at = "", 0.0

    def draw(what: str, done: int, total: int) -> None:
        nonlocal drawn, drawn_at
        now = time.monotonic()
        if what != drawn or done >= total or now - drawn_at >= _REDRAW_S:
            drawn, drawn_at = what, now
            stream.write(f"\r\x1b[K{_progress_text(what, done, total)}")
            stream.flush()

    try:
        yield draw
    finally:
        if drawn:
            stream.write("\r\x1b[K")
            stream.flush()


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
    """What a command did: as a JSON document, or as a line."""
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
