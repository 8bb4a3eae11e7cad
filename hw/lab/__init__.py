"""Emulated boards on one Linux machine: see README.md beside this.

A board is a network namespace with an address, control groups with its memory, CPU and disk, and a
folder; links have delay, rate, jitter, loss and cuts.
"""

from __future__ import annotations

from hw.lab.boards import Board, BoardLimits
from hw.lab.errors import LabError
from hw.lab.lab import Lab
from hw.lab.links import LinkShape
from hw.lab.networks import Link
from hw.lab.probe import Achieved

__all__ = ["Achieved", "Board", "BoardLimits", "Lab", "LabError", "Link", "LinkShape"]
