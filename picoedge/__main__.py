"""The program: `picoedge`, or `python -m picoedge`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while modules are loaded
    from picoedge.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
