"""A board's service in a thread, over real sockets, for jobs whose workers compute nothing."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from mesh_nodes import Running, found, fresh_context, running
from tiny_worker import KINDS

from picoedge.daemon.board import BoardService
from picoedge.daemon.memory.board_memory import BoardOptions
from picoedge.mesh.transport.client import Client

SUPPORT = Path(__file__).parent
WITHIN_S = 10.0


class Board:
    """A node with a board service in a thread, and connections to it of two other boards."""

    def __init__(self, folder: Path, stack: ExitStack, keep_s: float = 0.0) -> None:
        self.hub, self.guest, own = found(folder, "hub", "guest", "board")
        self.folder, self.stack = folder, stack
        self.running = Running(own)
        self.service = BoardService(
            self.running.node, self.options(keep_s), lambda: None, lambda identity: None, KINDS
        )
        stack.enter_context(running(self.running))
        self.context = stack.enter_context(fresh_context())
        stack.callback(lambda: self.running.do(self.service.close))

    def options(self, keep_s: float) -> BoardOptions:
        return BoardOptions(1 << 30, self.folder, keep_s=keep_s)

    def connect(self, identity: Any) -> Client:
        client = self.running.client(self.context, identity.keys)
        return self.stack.enter_context(closing(client))

    def spec(self, name: str, hub: Any = None) -> dict[str, Any]:
        """A job `name` of this board (rank 1) and of its hub; it ends with the file `name`."""
        members = [
            [each.keys.public, each.name] for each in (hub or self.hub, self.running.identity)
        ]
        return {"id": name, "rank": 1, "members": members, "until": str(self.folder / name)}

    def state(self) -> dict[str, Any]:
        return dict(self.running.do(self.service.report))

    def wait(self, **values: Any) -> dict[str, Any]:
        """The state, as soon as it has these values."""
        deadline = time.monotonic() + WITHIN_S
        while not values.items() <= (state := self.state()).items():
            assert time.monotonic() < deadline, state
            time.sleep(0.01)
        return state


def pushed(client: Client, kind: str) -> dict[str, Any]:
    """The first message of a kind that the daemon pushes."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        for name, body in client.notifications():
            if name == kind:
                return body
        time.sleep(0.01)
    raise AssertionError(f"no {kind}")
