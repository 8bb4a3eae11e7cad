"""One emulated board: processes in a network namespace and in control groups, and a folder."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.lab.cgroups import Group
from hw.lab.errors import LabError
from hw.lab.namespaces import Namespace
from hw.lab.networks import Port
from hw.lab.processes import kill_group, signal_all

_JOIN_S = 10.0


@dataclass(frozen=True)
class BoardLimits:
    """What one board has: CPUs (0.5, 2), bytes of memory, bytes read a second. None: no limit.

    `port_bytes_per_s` is what all of its links share, each direction by itself, as on a real
    network; only with links that have a shape.
    """

    cpu: float | None = None
    memory_bytes: int | None = None
    disk_bytes_per_s: int | None = None
    port_bytes_per_s: float | None = None


class Board:
    """A board of a lab. Its processes see its own address, and only its share of the machine."""

    def __init__(
        self,
        name: str,
        address: str,
        folder: Path,
        group: Group,
        namespace: Namespace,
        port: Port,
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.group, self.namespace, self.port = group, namespace, port
        self._environment = {**environment, "LAB_BOARD": name, "LAB_ADDRESS": address}
        self._started: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"<Board {self.name} {self.address}>"

    # -- processes ---------------------------------------------------------------------------------

    def start(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = None,
        stderr: Any = None,
        text: bool = False,
    ) -> subprocess.Popen[Any]:
        """Start a process on the board, in a session of its own; it is inside when this returns.

        `env` replaces this process's environment; LAB_BOARD, LAB_ADDRESS and LAB_ADDRESSES are
        added. Its pid is the command's. Raises LabError if there is no such command.
        """
        words = [os.fspath(word) for word in command]
        environment = {**(os.environ if env is None else env), **self._environment}
        environment["PATH"] = _own_programs_first(environment.get("PATH", os.defpath))
        if shutil.which(words[0], path=environment.get("PATH")) is None:
            raise LabError(f"{self.name}: no command {words[0]!r}")
        process = subprocess.Popen(
            self.group.command([*self.namespace.prefix, *words]),
            env=environment,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
            errors="replace" if text else None,
            start_new_session=True,
        )
        self._started.append(process)
        self._wait_inside(process)
        return process

    def _wait_inside(self, process: subprocess.Popen[Any]) -> None:
        """Nothing that is done to the board may miss a process that is just being started."""
        deadline = time.monotonic() + _JOIN_S
        while process.pid not in self.group.pids() and process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise LabError(f"{self.name}: a process did not start within {_JOIN_S:.0f} s")
            time.sleep(0.0005)

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: str | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the board to its end; its stdout and stderr are text.

        Raises subprocess.TimeoutExpired (it and its session's first process group are killed then),
        and with `check` CalledProcessError.
        """
        source, out = subprocess.DEVNULL if stdin is None else subprocess.PIPE, subprocess.PIPE
        process = self.start(
            command, env=env, cwd=cwd, stdin=source, stdout=out, stderr=out, text=True
        )
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout_s)
        except BaseException:
            kill_group(process)
            process.communicate()
            raise
        done = subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)
        if check:
            done.check_returncode()
        return done

    def pids(self) -> list[int]:
        """The processes on it."""
        return self.group.pids()

    def kill(self) -> None:
        """SIGKILL to all of its processes; none is left when this returns."""
        self.group.kill()

    def stop(self) -> None:
        """SIGSTOP to all of its processes; none runs when this returns."""
        self.group.stop()

    def resume(self) -> None:
        """SIGCONT to all of its processes."""
        signal_all(self.pids(), signal.SIGCONT)

    # -- limits ------------------------------------------------------------------------------------

    def limit(
        self,
        *,
        cpu: float | None = None,
        memory_bytes: int | None = None,
        disk_bytes_per_s: int | None = None,
        port_bytes_per_s: float | None = None,
    ) -> None:
        """Change the given limits, now; `unlimit` takes limits away. Raises LabError."""
        if cpu is not None:
            self.group.limit_cpu(cpu)
        if memory_bytes is not None:
            self.group.limit_memory(memory_bytes)
        if disk_bytes_per_s is not None:
            self.group.limit_reading(disk_bytes_per_s)
        if port_bytes_per_s is not None:
            self.port.limit(port_bytes_per_s)

    def unlimit(
        self, *, cpu: bool = False, memory: bool = False, disk: bool = False, port: bool = False
    ) -> None:
        """Take away the limits named."""
        if cpu:
            self.group.limit_cpu(None)
        if memory:
            self.group.limit_memory(None)
        if disk:
            self.group.limit_reading(None)
        if port:
            self.port.limit(None)

    def peak_bytes(self) -> int:
        """Most memory it ever had in use, page cache included."""
        return self.group.peak_bytes()

    def read_bytes(self) -> int:
        """Bytes it has read from its folder's disk."""
        return self.group.counter.read()

    def was_killed(self) -> bool:
        """Whether the kernel ever killed one of its processes for want of memory."""
        return self.group.was_killed()

    # -- firewall ----------------------------------------------------------------------------------

    def close_ports(self, *but: int) -> None:
        """Drop, in silence, what others send to open a TCP connection to any port but these."""
        ports = ", ".join(map(str, but)) or "0"
        self._nft(
            "table inet lab { chain input { type filter hook input priority 0; "
            'iif != "lo" tcp flags & (syn | ack) == syn tcp dport != { ' + ports + " } drop; }; }"
        )

    def open_ports(self) -> None:
        """Undo `close_ports`."""
        self._nft("delete table inet lab")

    def _nft(self, rules: str) -> None:
        if shutil.which("nft") is None:
            raise LabError("a board's firewall needs the command nft", "apt install nftables")
        self.namespace.shell(f"echo {shlex.quote(rules)} | nft -f -")

    # -- links and files ---------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut all of its links: frames are lost in silence."""
        self.port.cut()

    def heal(self) -> None:
        """Undo the cuts of all of its links."""
        self.port.heal()

    def copy(self, source: str | os.PathLike[str], name: str | None = None) -> Path:
        """Its own copy of a file or folder, in its folder: no link, no extent that is shared.

        A shared inode would share the page cache, and make a neighbour's reads free.
        """
        source = Path(source)
        target = self.folder / (name or source.name)
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_copy_file)
        else:
            _copy_file(source, target)
        return target

    def close(self) -> None:
        """Reap the processes started on it, once all were killed."""
        for process in self._started:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None and not stream.closed:
                    _close(stream)


def _copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Byte by byte: shutil's own copy may share extents where the file system can.

    The copy leaves the page cache, which would be the maker's: the board reads it from its disk.
    """
    with open(source, "rb") as reader, open(target, "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
        os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    shutil.copymode(source, target)


def _close(stream: Any) -> None:
    with suppress(BrokenPipeError):  # what it was still to be told, it will never read
        stream.close()


def _own_programs_first(path: str) -> str:
    """A search path with the programs of the running environment, activated or not."""
    return os.pathsep.join([os.path.dirname(sys.executable), path])
