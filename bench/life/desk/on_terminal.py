"""`python -m bench.life.desk.on_terminal COMMAND...`: run it on the terminal of stdin.

Ctrl-C typed there then becomes SIGINT, and closing the terminal SIGHUP, as on a real one: also
where the bench runs in the background, which ignores SIGINT.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios

if __name__ == "__main__":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
