"""`python -m fuzz.child TARGET SEED FIRST END PAGE SECONDS`: see `fuzz.run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fuzz.run import run_child
from fuzz.targets import TARGETS

if __name__ == "__main__":
    name, seed, first, end, page, seconds = sys.argv[1:]
    run_child(TARGETS[name], int(seed), range(int(first), int(end)), Path(page), float(seconds))
    sys.stdout.flush()
    os._exit(0)  # sockets that a target left open would be waited for
