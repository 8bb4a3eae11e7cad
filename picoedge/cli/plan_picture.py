"""A memory plan as a picture of characters: resident and streamed weights, by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
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


def picture(plan: WindowPlan, signs: Signs) -> Iterator[str]:
    """Lines of at most 80 columns, in the order of use: the layers, the head, a legend.

    More than 40 layers share lines.
    """
    bars: dict[tuple[str, int], list[Unit]] = {}
    for unit in plan.units:
        bars.setdefault((unit.kind, unit.layer), []).append(unit)
    last = max(layer for _, layer in bars)
    head = bars.get(("head", last))
    layers = range(last if head else last + 1)
    columns = max(1, -(-len(layers) // MOST_LINES))
    label = len(str(last)) + 1
    widths = _widths(plan.units, WIDTH // columns - label - 2)
    draw = partial(_bar, plan.resident, _window_at_start(plan), signs)
    yield _header(widths, label, columns)
    cells = [
        f"{layer:>{label - 1}} "
        + " ".join(draw(bars.get((kind, layer), []), width) for kind, width in widths.items())
        for layer in layers
    ]
    for at in range(0, len(cells), columns):
        yield "  ".join(cells[at : at + columns])
    if head:
        width = max(map(len, cells), default=0) * columns + 2 * (columns - 1)
        yield f"head {draw(head, max(width, _SMALLEST_LINE) - 5)}"
    yield ""
    if plan.streamed:
        yield (
            f"{signs.resident} resident   {signs.partly} partly   {signs.streamed} streamed   "
            f"{signs.window} in the window as a token begins"
        )
    else:
        yield f"{signs.resident} resident"


def _window_at_start(plan: WindowPlan) -> frozenset[Unit]:
    """The units in the window when a token begins: the first streamed ones, read ahead.

    They end where another unit still occupies the place.
    """
    places = zip(count(), plan.ring.behind, plan.streamed, strict=False)
    return frozenset(unit for _, _, unit in takewhile(lambda place: place[0] < place[1], places))


def _widths(units: Sequence[Unit], room: int) -> dict[str, int]:
    """Columns of the attention and FFN bars, in proportion to their bytes."""
    totals: Counter[str] = Counter()
    for unit in units:
        if unit.kind != "head":
            totals[unit.kind] += unit.nbytes
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


def _bar(
    resident: Container[Unit],
    in_window: Container[Unit],
    signs: Signs,
    units: Sequence[Unit],
    width: int,
) -> str:
    """Units as `width` characters, each an equal share of their bytes."""
    total = sum(unit.nbytes for unit in units)
    if not total:
        return " " * width
    pieces = [(unit.nbytes, unit in resident, unit in in_window) for unit in units]
    marks = [(i * total / width, (i + 1) * total / width) for i in range(width)]
    return "".join(_cell(pieces, start, end, signs) for start, end in marks)


def _cell(pieces: Sequence[tuple[int, bool, bool]], start: float, end: float, signs: Signs) -> str:
    """The character for bytes [start, end) of pieces (bytes, resident, in the window)."""
    at, kept = 0, 0.0
    for nbytes, is_resident, is_in_window in pieces:
        shared = min(end, at + nbytes) - max(start, at)
        if shared > 1e-6 * (end - start):
            if is_in_window:
                return signs.window
            kept += shared if is_resident else 0.0
        at += nbytes
    share = kept / (end - start)
    if share > 0.999:
        return signs.resident
    return signs.partly if share > 0.001 else signs.streamed
