"""What is said to people: answers on stdout, everything else on stderr, nothing in a pipe's way."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picoedge.engine.session import Session, Stats

_CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def printable(text: str) -> str:
    """`text` without control characters: a model's words must not steer a terminal."""
    return text.translate(_CONTROL)


def write_answer(piece: str) -> None:
    """A piece of an answer to stdout, at once."""
    sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def note(text: str, verbose: bool = False) -> None:
    """A line on stderr, where somebody looks at it or asked for it."""
    if sys.stderr is not None and (verbose or sys.stderr.isatty()):
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line on stderr, always."""
    if sys.stderr is not None:
        print(f"note: {text}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout; floats rounded to a millionth."""
    print(json.dumps(rounded(value), ensure_ascii=False))


def rounded(value: Any) -> Any:
    """The same value with every float rounded to six places."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """A name and a value a line."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        print(f"{name.ljust(width)}  {value}".rstrip())


def rates(stats: Stats) -> str:
    """`prompt 23 tokens (12 reused) 310 tok/s · answer 57 tokens 92 tok/s`."""
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    prompt = f"prompt {stats.prompt_tokens} tokens{reused}{_rate(stats.prefill_tok_s)}"
    return f"{prompt} · answer {len(stats.tokens)} tokens{_rate(stats.decode_tok_s)}"


def _rate(tok_s: float | None) -> str:
    return "" if tok_s is None else f" {tok_s:.1f} tok/s"


def tell_end(session: Session, verbose: bool) -> None:
    """After one answer: that the context cut it (always), the rates (if asked for)."""
    if session.stats.context_full:
        warn(f"the context of {session.model.n_ctx} tokens is full: the answer is cut there")
    if verbose:
        note(rates(session.stats), verbose)
