"""A memory plan as a picture of characters: what is resident and what streamed, by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from picoedge.store.shards import Unit
    from picoedge.store.window.plan import WindowPlan

WIDTH = 80
MOST_LINES = 40
_SMALLEST_BAR = 3
_SMALLEST_LINE = 40


@dataclass(frozen=True)
class Signs:
    """A character for each state of a piece of a layer."""

    resident: str
    partly: str
    streamed: str
    window: str


UNICODE = Signs("█", "▒", "·", "◆")
ASCII = Signs("#", "+", ".", "o")


@dataclass(frozen=True)
class _Piece:
    """A unit of a bar: its size and state."""

    nbytes: int
    resident: bool
    in_window: bool


def picture(plan: WindowPlan, signs: Signs) -> Iterator[str]:
    """Lines of at most 80 columns, in the order of use: the layers, the head, a legend.

    More than 40 layers share lines.
    """
    pieces = _pieces(plan)
    last = max(layer for _, layer in pieces)
    has_head = ("head", last) in pieces
    layers = range(last if has_head else last + 1)
    columns = max(1, -(-len(layers) // MOST_LINES))
    label = len(str(last)) + 1
    room = WIDTH // columns - label - 2
    widths = _widths(pieces, room)
    yield _header(widths, label, columns)
    cells = [
        f"{layer:>{label - 1}} "
        + " ".join(
            _bar(pieces.get((kind, layer), []), width, signs) for kind, width in widths.items()
        )
        for layer in layers
    ]
    for at in range(0, len(cells), columns):
        yield "  ".join(cells[at : at + columns])
    if has_head:
        width = max(map(len, cells), default=0) * columns + 2 * (columns - 1)
        yield f"head {_bar(pieces['head', last], max(width, _SMALLEST_LINE) - 5, signs)}"
    yield from _legend(plan, signs)


def _pieces(plan: WindowPlan) -> dict[tuple[str, int], list[_Piece]]:
    """Units by kind and layer, in order of use."""
    ahead = _window_at_start(plan)
    pieces: dict[tuple[str, int], list[_Piece]] = {}
    for unit in plan.units:
        piece = _Piece(unit.nbytes, unit in plan.resident, unit in ahead)
        pieces.setdefault((unit.kind, unit.layer), []).append(piece)
    return pieces


def _window_at_start(plan: WindowPlan) -> frozenset[Unit]:
    """The units in the window when a token begins: the first streamed ones, read ahead."""
    behind = plan.ring.behind
    held: list[Unit] = []
    for i, unit in enumerate(plan.streamed):
        if i - behind[i] >= 0:  # another unit still occupies its place
            break
        held.append(unit)
    return frozenset(held)


def _widths(pieces: dict[tuple[str, int], list[_Piece]], room: int) -> dict[str, int]:
    """Columns of the attention and FFN bars, in proportion to their bytes."""
    totals: dict[str, int] = {}
    for (kind, _), run in pieces.items():
        if kind != "head":
            totals[kind] = totals.get(kind, 0) + sum(piece.nbytes for piece in run)
    columns = room - (len(totals) - 1)
    all_bytes = sum(totals.values())
    widths = {kind: max(_SMALLEST_BAR, columns * n // all_bytes) for kind, n in totals.items()}
    if sum(widths.values()) > columns:
        largest = max(widths, key=lambda kind: widths[kind])
        widths[largest] -= sum(widths.values()) - columns
    return widths


def _header(widths: dict[str, int], label: int, columns: int) -> str:
    names = {"attention": ("attention", "attn", "a"), "ffn": ("FFN", "FFN", "f")}
    titles = [
        next(name for name in (*names[kind], "") if len(name) <= width).ljust(width)
        for kind, width in widths.items()
    ]
    return "  ".join([" " * label + " ".join(titles)] * columns).rstrip()


def _bar(pieces: Sequence[_Piece], width: int, signs: Signs) -> str:
    """Units as `width` characters, each an equal share of their bytes."""
    total = sum(piece.nbytes for piece in pieces)
    if not total:
        return " " * width
    marks = [(i * total / width, (i + 1) * total / width) for i in range(width)]
    return "".join(_cell(pieces, start, end, signs) for start, end in marks)


def _cell(pieces: Sequence[_Piece], start: float, end: float, signs: Signs) -> str:
    at, resident, in_window = 0, 0.0, False
    for piece in pieces:
        shared = min(end, at + piece.nbytes) - max(start, at)
        if shared > 1e-6 * (end - start):
            resident += shared if piece.resident else 0.0
            in_window = in_window or piece.in_window
        at += piece.nbytes
    if in_window:
        return signs.window
    share = resident / (end - start)
    if share > 0.999:
        return signs.resident
    return signs.partly if share > 0.001 else signs.streamed


def _legend(plan: WindowPlan, signs: Signs) -> Iterator[str]:
    yield ""
    if not plan.streamed:
        yield f"{signs.resident} resident"
        return
    yield (
        f"{signs.resident} resident   {signs.partly} partly   {signs.streamed} streamed   "
        f"{signs.window} in the window as a token begins"
    )
