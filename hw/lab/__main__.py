"""Emulated boards from the shell: `python -m hw.lab --boards 4 --delay 1ms -- COMMAND`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar

from hw.lab.boards import Board, BoardLimits
from hw.lab.errors import LabError
from hw.lab.lab import Lab
from hw.lab.links import LinkShape, parse_part, parse_rate, parse_seconds
from hw.lab.probe import Achieved
from picoedge.errors import PicoedgeError
from picoedge.units import parse_size

T = TypeVar("T")
ABOUT = """Emulate boards on this machine and run COMMAND on one of them, or on all, with LAB_BOARD,
LAB_ADDRESS and LAB_ADDRESSES in its environment. Without COMMAND: measure what the links do."""


def _read(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` as argparse wants it: its errors become usage errors."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except (PicoedgeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m hw.lab", description=ABOUT)
    add, seconds, rate, size = (
        made.add_argument,
        _read(parse_seconds),
        _read(parse_rate),
        _read(parse_size),
    )
    add("--boards", type=int, default=2, metavar="N", help="how many (2)")
    add("--delay", type=seconds, metavar="TIME", help="of a link, each way: 1ms, 250us")
    add("--jitter", type=seconds, metavar="TIME", help="at most so much more delay")
    add("--rate", type=rate, metavar="RATE", help="of each link, each way: 300mbit")
    add("--port", type=rate, metavar="RATE", help="of all links of a board together, each way")
    add("--loss", type=_read(parse_part), metavar="PART", help="of frames: 1%%")
    add("--memory", type=size, metavar="SIZE", help="of each board: 512M")
    add("--cpu", type=_read(float), metavar="SHARE", help="of each board, in CPUs: 0.5")
    add("--disk", type=size, metavar="SIZE", help="read by each board a second: 100M")
    add("--folder", metavar="DIR", help="beneath which boards have their folders (temporary)")
    add("--on", default="1", metavar="WHICH", help="run COMMAND on board 1, 2, ... or all (1)")
    add("--json", action="store_true", help="what was measured as one JSON object")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return made


def lab_of(options: argparse.Namespace) -> Lab:
    """The lab that the options describe: shaped only if they ask for it."""
    given = {
        "delay_s": options.delay,
        "jitter_s": options.jitter,
        "rate_bytes_per_s": options.rate,
        "loss": options.loss,
    }
    given = {name: value for name, value in given.items() if value is not None}
    link = LinkShape(**given) if given or options.port is not None else None
    limits = BoardLimits(options.cpu, options.memory, options.disk, options.port)
    return Lab(options.boards, link, limits, folder=options.folder)


def chosen(boards: Sequence[Board], which: str) -> list[Board]:
    """The boards meant by `--on`. Raises LabError."""
    if which == "all":
        return list(boards)
    if which.isdecimal() and 1 <= int(which) <= len(boards):
        return [boards[int(which) - 1]]
    raise LabError(f"no board {which!r}", f"boards are 1 to {len(boards)}, or all")


def run(boards: Sequence[Board], command: Sequence[str]) -> int:
    """Run it on all of these at once; the first exit code that is not 0. Ctrl-C is passed on."""
    stdin = None if len(boards) == 1 else subprocess.DEVNULL
    started = [board.start(command, stdin=stdin) for board in boards]
    while True:
        try:
            codes = [process.wait() for process in started]
            return next((128 - code if code < 0 else code for code in codes if code), 0)
        except KeyboardInterrupt:
            _interrupt(started)


def _interrupt(started: Sequence[subprocess.Popen[Any]]) -> None:
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)


def report(achieved: Sequence[Achieved], as_json: bool) -> str:
    """What the links do: a table, or one JSON object."""
    if as_json:
        return json.dumps({"links": [asdict(link) for link in achieved]})
    lines = ["link                  ping ms   bulk Mbit/s"]
    for link in achieved:
        name = " - ".join(link.pair)
        lines.append(f"{name:20} {link.ping_ms:8.3f} {link.bulk_bytes_per_s * 8e-6:13.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: COMMAND's own, 0, 2 for usage, 3 where boards cannot be emulated."""
    options = parser().parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        with lab_of(options) as lab:
            if command:
                return run(chosen(lab.boards, options.on), command)
            print(report(lab.measure(), options.json))
            return 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
