"""`python -m bench NAME`: measure the claims; `profile MODEL`: where the time goes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

NOT_BUILT = ("join", "events")
BENCHES = (
    *("decode", "window", "seventy_b", "mesh", "recovery", "weeks", "fuzz", "train", "simulator"),
    "profile",
)
USAGE = (
    f"usage: python -m bench {'|'.join(BENCHES[:-1])} [--json]"
    " [--rounds N] [--row NAME]... [--into FILE] | profile MODEL"
)


def main(argv: Sequence[str]) -> int:
    """Run one bench; returns the exit code."""
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name in BENCHES:
        bench = importlib.import_module(f"bench.{name}")  # a bench imports only its own peers
        return int(bench.main(rest))
    if name in NOT_BUILT:
        print(f"bench {name}: not built yet: there is nothing to measure", file=sys.stderr)
        return 3
    print(USAGE, file=sys.stderr)
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    from bench.children import BenchError

    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BenchError as error:
        sys.exit(f"error: {error}")
