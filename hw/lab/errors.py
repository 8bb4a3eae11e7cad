"""What the lab refuses to do, and why."""

from __future__ import annotations

from picoedge.errors import PicoedgeError


class LabError(PicoedgeError):
    """Boards cannot be emulated here (rights, tools, controllers), or not as asked."""

    exit_code = 3
