"""`python -m bench.life.desk.on_terminal COMMAND...`: run it on the terminal of stdin.

Ctrl-C typed there then becomes SIGINT, and closing the terminal SIGHUP, as on a real one.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios

if __name__ == "__main__":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.execvp(sys.argv[1], sys.argv[1:])
