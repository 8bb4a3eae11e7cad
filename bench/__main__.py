"""`python -m bench NAME`: measure what is claimed; `profile MODEL`: where the time goes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

NOT_BUILT = ("join", "events")
USAGE = (
    "usage: python -m bench decode|window|seventy_b|mesh|recovery [--json] [--rounds N]"
    " [--rows A,B] | profile MODEL"
)


def main(argv: Sequence[str]) -> int:
    """Run one bench; returns the exit code."""
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name == "decode":
        from bench import decode

        return decode.main(rest)
    if name == "window":
        from bench import window

        return window.main(rest)
    if name == "seventy_b":
        from bench import seventy_b

        return seventy_b.main(rest)
    if name == "mesh":
        from bench import mesh

        return mesh.main(rest)
    if name == "recovery":
        from bench import recovery

        return recovery.main(rest)
    if name == "profile":
        from bench import profile

        return profile.main(rest)
    if name in NOT_BUILT:
        print(f"bench {name}: not built yet: there is nothing to measure", file=sys.stderr)
        return 3
    print(USAGE, file=sys.stderr)
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    from bench.children import BenchError

    try:
        sys.exit(main(sys.argv[1:]))
    except BenchError as error:
        sys.exit(f"error: {error}")
