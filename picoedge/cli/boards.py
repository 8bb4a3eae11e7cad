"""`picoedge ps`, what each board does, `top`, which samples it, `doctor`, faults of this one."""

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli.options import json_option
from picoedge.cli.output import print_json, print_table
from picoedge.sanitize import one_line
from picoedge.units import format_size, format_span

if TYPE_CHECKING:
    from rich.table import Table

    from picoedge.engine.doctor import Check
    from picoedge.jobs.status import BoardState, MemoryUse, MeshState
    from picoedge.mesh.transport.client import Client

    Sample = tuple[MeshState, list["TokenRates | None"]]

PS_HEADER = (
    "board", "is", "address", "does", "model", "attention", "ffn", "head", "memory", "temperature",
)  # fmt: skip
TOP_HEADER = (
    "board", "does", "model", "memory", "temperature", "tok/s", "computing", "sums", "disk", "idle",
)  # fmt: skip
QUIT = ("q", "Q", "\x03", "\x1b")
# A Ctrl-C that comes while a wait begins is heard when it ends: Python looks then.
_SIGNAL_S = 0.25


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ps(as_json: bool) -> None:
    """Show the boards of the mesh: what each does, its slice of the model, memory, temperature.

    This board's daemon answers; `picoedge run` starts it.
    """
    from picoedge.jobs.status import ask_mesh

    with _daemon() as client:
        mesh = ask_mesh(client)
    if as_json:
        print_json(mesh.to_json())
        return
    click.echo(summary(mesh))
    print_table(PS_HEADER, [row(board) for board in mesh.boards])


def cluster_budgets() -> list[int]:
    """Memory for jobs of each board that is there; [] where this board's daemon does not run."""
    from picoedge.mesh.cluster_folder import cluster_folder

    if not cluster_folder(os.environ).is_dir():
        return []  # in no cluster: nothing to load for that
    from picoedge.errors import PicoedgeError
    from picoedge.jobs.status import PRESENT, ask_mesh

    try:
        with _daemon() as client:
            boards = ask_mesh(client).boards
    except PicoedgeError:
        return []
    return [board.budget_bytes or 0 for board in boards if board.condition in PRESENT]


@contextmanager
def _daemon() -> Iterator[Client]:
    """A connection to this board's daemon. Raises AccessError, BoardLostError."""
    import zmq

    from picoedge.jobs.spec import VERSION_1
    from picoedge.mesh.cluster_folder import cluster_folder
    from picoedge.mesh.transport.client import connect_local

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with connect_local(context, cluster_folder(os.environ), VERSION_1) as client:
            yield client
    finally:
        context.destroy(linger=0)


def summary(mesh: MeshState) -> str:
    """`cluster desk: 3 boards, 2 of them here`."""
    from picoedge.jobs.status import PRESENT

    count = len(mesh.boards)
    here = sum(board.condition in PRESENT for board in mesh.boards)
    boards = "1 board" if count == 1 else f"{count} boards"
    return f"cluster {mesh.cluster}: {boards}" + (f", {here} of them here" if here < count else "")


def row(board: BoardState) -> tuple[str, ...]:
    """The cells of one board under `PS_HEADER`."""
    from picoedge.jobs.status import PRESENT

    always = (board.name, board.condition, board.address or "-")
    if board.condition not in PRESENT:
        return (*always, *("-",) * 7)
    return (
        *always,
        does(board),
        board.model or "-",
        _span("heads", board.attention),
        _span("shards", board.ffn),
        _span("shards", board.head_shards),
        memory(board),
        temperature(board),
    )


def does(board: BoardState) -> str:
    """`free`; `computing for desk`; `loading for desk (waits for its disk)`."""
    text = {"hub": "hub of a session", "taken": "taken"}.get(board.does, board.does) or "-"
    if board.holder and board.does != "hub":
        text += f" for {board.holder}"
    text += {"disk": " (waits for its disk)", "stopped": " (stopped)"}.get(board.how, "")
    text += " (relayed)" if board.relayed else ""
    for use in board.uses:
        if use.use == "kept":
            text += f", keeps {use.model or 'a slice'} for {format_span(use.age_s)}"
    return f"{text}, {board.waiting} waiting" if board.waiting else text


def memory(board: BoardState) -> str:
    """`210 MB of 512 MB`; then its claims: `…: 180 MB for desk, 20 MB kept for shelf`."""
    if board.used_bytes is None or board.budget_bytes is None:
        return "-"
    text = f"{format_size(board.used_bytes)} of {format_size(board.budget_bytes)}"
    uses = ", ".join(map(_has, board.uses))
    return f"{text}: {uses}" if uses else text


def _has(use: MemoryUse) -> str:
    """`180 MB for this board alone`; `20 MB kept for shelf`; `90 MB training for desk`."""
    words = (format_size(use.bytes), "" if use.use == "answer" else use.use)
    holder = f"for {use.holder}" if use.holder else ""
    return " ".join(word for word in (*words, holder) if word)


def temperature(board: BoardState) -> str:
    """`61 °C`, `84 °C, throttled`; `-` where the board has no sensor."""
    known = "-" if board.temperature_c is None else f"{board.temperature_c:.0f} °C"
    return f"{known}, throttled" if board.throttled else known


def _span(kind: str, shards: range | None) -> str:
    return f"{kind} {shards.start}-{shards.stop - 1}" if shards else "-"


@click.command("top")
@click.option("-n", "--samples", type=click.IntRange(1), help="End after so many [default: never].")
@click.option(
    "-d", "--delay", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True,
    metavar="SECONDS", help="Time from one sample to the next.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each sample.")
def top(samples: int | None, delay: float, as_json: bool) -> None:
    """Watch the boards of the mesh work; q or Ctrl-C ends it.

    Of a board in a session it shows how a token's time is spent: computing, waiting for the
    other boards' parts of sums, waiting for its disk, and idle between tokens.
    """
    from picoedge.jobs.status import ask_mesh

    with _daemon() as client, suppress(KeyboardInterrupt):
        taken = sampled(partial(ask_mesh, client), samples, delay, _sleep)
        if sys.stdout.isatty() and not as_json:
            _live(taken)
            return
        for mesh, rates in taken:
            if as_json:
                click.echo(json.dumps(_to_json(mesh, rates)))
            else:
                _print_lines(mesh, rates)


def sampled(
    ask: Callable[[], MeshState],
    samples: int | None,
    delay_s: float,
    sleep: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Sample]:
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
class TokenRates:
    """A board's tokens per second between two samples, and the seconds of a token by kind."""

    tok_s: float
    compute_s: float
    sync_s: float
    disk_s: float
    idle_s: float


def _rates(
    before: tuple[float, BoardState] | None, board: BoardState, now_s: float
) -> TokenRates | None:
    """None if the board ran no token in between, or tokens of another job."""
    was, work = (None if before is None else before[1].work), board.work
    if before is None or was is None or work is None:
        return None
    elapsed_s, tokens = now_s - before[0], work.tokens - was.tokens
    if tokens <= 0 or elapsed_s <= 0 or work.compute_s < was.compute_s:
        return None
    spent = (work.compute_s - was.compute_s, work.sync_s - was.sync_s, work.disk_s - was.disk_s)
    idle_s = max(0.0, elapsed_s - sum(spent))
    return TokenRates(tokens / elapsed_s, *(seconds / tokens for seconds in (*spent, idle_s)))


def _to_json(mesh: MeshState, rates: list[TokenRates | None]) -> dict[str, Any]:
    boards = [
        {**board.to_json(), "rates": rate and asdict(rate)}
        for board, rate in zip(mesh.boards, rates, strict=True)
    ]
    return {"time": time.time(), "cluster": mesh.cluster, "boards": boards}


def _print_lines(mesh: MeshState, rates: list[TokenRates | None]) -> None:
    """Print a sample as plain lines, each with its time and its board."""
    now = time.strftime("%H:%M:%S")
    for board, rate in zip(mesh.boards, rates, strict=True):
        named = zip(TOP_HEADER[1:], top_row(board, rate)[1:], strict=True)
        cells = "  ".join(f"{name} {value}" for name, value in named if value != "-")
        click.echo(one_line(f"{now}  {board.name}  {board.condition}  {cells}"))


def top_row(board: BoardState, rate: TokenRates | None) -> tuple[str, ...]:
    """The cells of one board under `TOP_HEADER`."""
    name, _, _, does, model, *_, memory, temperature = row(board)
    speeds: tuple[str, ...] = ("-",) * 5
    if rate is not None:
        times = (rate.compute_s, rate.sync_s, rate.disk_s, rate.idle_s)
        speeds = (f"{rate.tok_s:.3g}", *(f"{1e3 * seconds:.3g} ms" for seconds in times))
    does = board.condition if does == "-" else does
    return (name, does, model, memory, temperature, *speeds)


def _live(taken: Iterator[Sample]) -> None:
    from rich.live import Live

    with _keys(), Live(auto_refresh=False, screen=False) as live:
        for mesh, rates in taken:
            live.update(_table(mesh, rates), refresh=True)


def _table(mesh: MeshState, rates: list[TokenRates | None]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=Text(f"{summary(mesh)} · q ends"), title_justify="left")
    for name in TOP_HEADER:
        table.add_column(name)
    for board, rate in zip(mesh.boards, rates, strict=True):
        hot = "bold red" if board.throttled or board.condition == "dead" else ""
        # Text, not markup: names come from other boards.
        table.add_row(*(Text(one_line(cell)) for cell in top_row(board, rate)), style=hot)
    return table


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
    watched = [sys.stdin] if sys.stdin and sys.stdin.isatty() and sys.stdout.isatty() else []
    end_s = time.monotonic() + delay_s
    while (left_s := end_s - time.monotonic()) > 0:
        ready = select.select(watched, [], [], min(left_s, _SIGNAL_S))[0]
        if ready and sys.stdin.read(1) in (*QUIT, ""):
            return False
    return True


def _board_checks(kernels: str | None) -> list[Check]:
    from picoedge.engine.doctor import check_board
    from picoedge.registry.shelf import Shelf

    return list(check_board(Shelf.from_environment(), kernels))


def _cluster_checks() -> list[Check]:
    import zmq

    from picoedge.jobs.cluster_check import check_cluster
    from picoedge.mesh.cluster_folder import cluster_folder
    from picoedge.mesh.identity.identity import load_identity

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        return check_cluster(context, load_identity(cluster_folder(os.environ)))
    finally:
        context.destroy(linger=0)


@click.command("doctor")
@click.option("--kernels", envvar="PICOEDGE_KERNELS", help="Check for these: numpy or native.")
@click.option(
    "--cluster", "over_boards", is_flag=True,
    help="Check the ways between all boards instead: what reaches what, and what to open where.",
)  # fmt: skip
@json_option
def doctor(kernels: str | None, over_boards: bool, as_json: bool) -> int:
    """Check this board: a line for each fault, with its remedy.

    The exit code is 1 where something keeps picoedge from working as it should.
    """
    checks = _cluster_checks() if over_boards else _board_checks(kernels)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            remedy = f" -> {check.remedy}" if check.remedy else ""
            click.echo(f"{check.status:4}  {check.name:{width}}  {check.text}{remedy}")
    return 1 if any(check.status == "fail" for check in checks) else 0
