"""`picoedge top`: how each board of the cluster spends its time, sampled continuously."""

from __future__ import annotations

import itertools
import json
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import ps
from picoedge.cli.output import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from picoedge.jobs.status import BoardState, MeshState

HEADER = (
    "board", "does", "model", "memory", "temperature", "tok/s", "computing", "sums", "disk", "idle",
)  # fmt: skip
QUIT = ("q", "Q", "\x03", "\x1b")


@click.command()
@click.option("-n", "--samples", type=click.IntRange(1), help="End after so many [default: never].")
@click.option(
    "-d", "--delay", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True,
    metavar="SECONDS", help="Time from one sample to the next.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each sample.")
def command(samples: int | None, delay: float, as_json: bool) -> None:
    """Watch the boards of the mesh work; q or Ctrl-C ends it.

    Of a board in a session it shows how a token's time is spent: computing, waiting for the
    other boards' parts of sums, waiting for its disk, and idle between tokens.
    """
    from picoedge.jobs.status import ask_mesh

    with ps.daemon() as caller, suppress(KeyboardInterrupt):
        taken = sampled(partial(ask_mesh, caller), samples, delay, _sleep)
        if sys.stdout.isatty() and not as_json:
            _live(taken)
            return
        for mesh, rates in taken:
            if as_json:
                click.echo(json.dumps(_to_json(mesh, rates), ensure_ascii=False))
            else:
                _print_lines(mesh, rates)


def sampled(
    ask: Callable[[], MeshState],
    samples: int | None,
    delay_s: float,
    sleep: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[MeshState, list[Rates | None]]]:
    """Sample the mesh: its state, and each board's rates since the sample before.

    `sleep` returns False to end.
    """
    before: dict[str, tuple[float, BoardState]] = {}
    for count in itertools.count(1):
        mesh, now_s = ask(), clock()
        yield mesh, [_rates(before.get(board.key), board, now_s) for board in mesh.boards]
        before = {board.key: (now_s, board) for board in mesh.boards}
        if count == samples or not sleep(delay_s):
            return


@dataclass(frozen=True)
class Rates:
    """A board's tokens per second between two samples, and the seconds of a token by kind."""

    tok_s: float
    compute_s: float
    sync_s: float
    disk_s: float
    idle_s: float


def _rates(
    before: tuple[float, BoardState] | None, board: BoardState, now_s: float
) -> Rates | None:
    """None if the board ran no token in between, or tokens of another job."""
    was, work = before and before[1].work, board.work
    if before is None or was is None or work is None:
        return None
    elapsed_s, tokens = now_s - before[0], work.tokens - was.tokens
    if tokens <= 0 or elapsed_s <= 0 or work.compute_s < was.compute_s:
        return None
    spent = (work.compute_s - was.compute_s, work.sync_s - was.sync_s, work.disk_s - was.disk_s)
    idle_s = max(0.0, elapsed_s - sum(spent))
    return Rates(tokens / elapsed_s, *(seconds / tokens for seconds in (*spent, idle_s)))


# -- shown ---------------------------------------------------------------------------------------


def _to_json(mesh: MeshState, rates: list[Rates | None]) -> dict[str, Any]:
    boards = [
        {**board.to_json(), "rates": rate and asdict(rate)}
        for board, rate in zip(mesh.boards, rates, strict=True)
    ]
    return {"time": time.time(), "cluster": mesh.cluster, "boards": boards}


def _print_lines(mesh: MeshState, rates: list[Rates | None]) -> None:
    """Print a sample as plain lines, each with its time and its board."""
    now = time.strftime("%H:%M:%S")
    for board, rate in zip(mesh.boards, rates, strict=True):
        named = zip(HEADER[1:], row(board, rate)[1:], strict=True)
        cells = "  ".join(f"{name} {value}" for name, value in named if value != "-")
        click.echo(one_line(f"{now}  {board.name}  {board.condition}  {cells}"))


def row(board: BoardState, rate: Rates | None) -> tuple[str, ...]:
    """The cells of one board under `HEADER`."""
    name, _, _, does, model, *_, memory, temperature = ps.row(board)
    speeds: tuple[str, ...] = ("-",) * 5
    if rate is not None:
        times = (rate.compute_s, rate.sync_s, rate.disk_s, rate.idle_s)
        speeds = (f"{rate.tok_s:.3g}", *(f"{1e3 * seconds:.3g} ms" for seconds in times))
    does = board.condition if does == "-" else does
    return (name, does, model, memory, temperature, *speeds)


def _live(taken: Iterator[tuple[MeshState, list[Rates | None]]]) -> None:
    from rich.live import Live

    with _keys(), Live(auto_refresh=False, screen=False) as live:
        for mesh, rates in taken:
            live.update(_table(mesh, rates), refresh=True)


def _table(mesh: MeshState, rates: list[Rates | None]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=Text(f"{ps.summary(mesh)} · q ends"), title_justify="left")
    for name in HEADER:
        table.add_column(name)
    for board, rate in zip(mesh.boards, rates, strict=True):
        hot = "bold red" if board.throttled or board.condition == "dead" else ""
        # Text, not markup: names come from other boards.
        table.add_row(*(Text(one_line(cell)) for cell in row(board, rate)), style=hot)
    return table


# -- time and keys -------------------------------------------------------------------------------


@contextmanager
def _keys() -> Iterator[None]:
    """Read keys without Enter, if stdin is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _sleep(delay_s: float) -> bool:
    """Wait; False at once if a key of QUIT is pressed."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        time.sleep(delay_s)
        return True
    end_s = time.monotonic() + delay_s
    while (left_s := end_s - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0] and sys.stdin.read(1) in (*QUIT, ""):
            return False
    return True
