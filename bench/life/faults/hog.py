"""`python -m bench.life.faults.hog PID...`: take memory until the kernel kills one of these.

It runs in their control group, and is the last that the kernel would choose there.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

STEP, MOST = 4 << 20, 4 << 30


def main(pids: list[int]) -> int:
    """0: the kernel killed one of them."""
    Path("/proc/self/oom_score_adj").write_text("-1000")
    taken: list[mmap.mmap] = []
    while len(taken) * STEP < MOST:
        if not all(map(_is_alive, pids)):
            return 0
        room = mmap.mmap(-1, STEP)
        for at in range(0, STEP, mmap.PAGESIZE):
            room[at] = 1
        taken.append(room)
    return 1


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main([int(word) for word in sys.argv[1:]]))
