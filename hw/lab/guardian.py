"""The process that cleans up after a lab whose owner is gone: `python -m hw.lab.guardian`.

It waits for the end of its stdin, a pipe that the owner holds, or of the owner itself (whose
forked children may hold that pipe longer), then undoes what the record says. It is in a session
of its own and deaf to signals that ask: only SIGKILL ends it, and then the next lab sweeps.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

from hw.lab.leftovers import Record


def wait_for_end(owner: int) -> None:
    """Until stdin ends or the process `owner` does."""
    watched = [sys.stdin.fileno()]
    try:
        watched.append(os.pidfd_open(owner))
    except ProcessLookupError:
        return
    except OSError:
        pass  # Linux before 5.3: the pipe has to do
    if os.getppid() == owner:
        select.select(watched, [], [])


def main() -> None:
    """Guard the lab of process argv[1], whose record is argv[2], open as argv[3]."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wait_for_end(int(sys.argv[1]))
    Record(Path(sys.argv[2]), int(sys.argv[3])).undo()


if __name__ == "__main__":
    main()
