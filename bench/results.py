"""Results of a bench kept in a file, so that single rows can be measured again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.children import Unready

Row = dict[str, Any]


def read_rows(path: Path, bench: str) -> list[Row]:
    """The rows of a results file, [] where there is none yet. Raises Unready for another file."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise Unready(f"--into {path}: not a results file: {error}") from error
    rows = kept.get("rows") if isinstance(kept, dict) else None
    if not isinstance(rows, list) or kept.get("bench") != bench:
        raise Unready(f"--into {path}: no results of the bench {bench!r}")
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]


def merged(kept: Sequence[Row], new: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Rows in the bench's order; a new row replaces the kept one of its name."""
    by_name = {row["name"]: row for row in (*kept, *new)}
    return [by_name[name] for name in order if name in by_name]


def write_rows(path: Path, bench: str, rows: Sequence[Row]) -> None:
    """Replace the file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps({"bench": bench, "rows": list(rows)}, indent=1)
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)
