"""Network namespaces without names: they end with the last process or descriptor in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hw.lab.errors import LabError

ROOT = Path(__file__).resolve().parents[2]
TUN = Path("/dev/net/tun")
TOOLS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}


def check(with_switch: bool) -> None:
    """Raises LabError naming a thing that emulated boards need and this machine lacks."""
    if os.geteuid() != 0:
        raise LabError("emulated boards need root (network namespaces, control groups)", "use sudo")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise LabError(f"emulated boards need the command {tool}", f"apt install {package}")
    if with_switch and not TUN.exists():
        raise LabError(
            f"links with delay, rate, jitter or loss need {TUN}, which is missing",
            "modprobe tun, or in a container: --device /dev/net/tun",
        )


def python_path() -> dict[str, str]:
    """The environment in which a Python started anywhere imports `hw`."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


class Namespace:
    """One namespace, held open by this process; others enter it by `prefix`."""

    def __init__(self) -> None:
        holder = ["unshare", "--net", "sh", "-c", "echo && read _"]
        with subprocess.Popen(
            holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            if not process.stdout.readline():
                reason = process.stderr.read().decode().strip()
                raise LabError(
                    f"no network namespace: {reason}", "in a container: --privileged may be needed"
                )
            self.fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            process.stdin.close()

    @property
    def path(self) -> str:
        """Where a process of this user enters it, as long as it is held."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def prefix(self) -> list[str]:
        """Put before a command, it runs in the namespace."""
        return ["nsenter", f"--net={self.path}", "--"]

    def shell(self, script: str) -> None:
        """Run a script of /bin/sh inside. Raises LabError."""
        self._run(["sh", "-c", script], "")

    def ip(self, lines: Sequence[str]) -> None:
        """Run commands of `ip`, each a line, at one go. Raises LabError."""
        self._run(["ip", "-batch", "-"], "\n".join(lines) + "\n")

    def _run(self, command: Sequence[str], stdin: str) -> None:
        done = subprocess.run(
            [*self.prefix, *command], input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()}\n{stdin}".rstrip())

    def close(self) -> None:
        """Let go of it: with nothing left inside it ends, and its devices with it."""
        os.close(self.fd)
