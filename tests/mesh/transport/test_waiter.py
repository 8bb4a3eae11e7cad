"""Waiting for a message that comes at the same moment as the end of its connection."""

from __future__ import annotations

import pytest

from picoedge.errors import BoardLostError, MeshError
from picoedge.mesh.transport.waiter import Waiter


@pytest.mark.parametrize("call", [1, 2])
def test_a_message_that_came_just_before_the_end_is_read(call: int) -> None:
    messages, calls = list[str](), list[int]()

    def trouble() -> MeshError | None:
        """Nothing until this call, before which the message and the end come together."""
        calls.append(len(calls) + 1)
        if len(calls) < call:
            return None
        messages.append("the last message")
        return BoardLostError("its connection ended")

    waiter = Waiter(spin_s=0.0)
    waiter.add_source(Timer())
    assert waiter.wait(lambda: messages.pop() if messages else None, tuple, None, trouble)


def test_without_a_message_the_end_is_raised() -> None:
    with pytest.raises(BoardLostError, match="its connection ended"):
        Waiter(spin_s=0.0).wait(
            lambda: None, tuple, None, lambda: BoardLostError("its connection ended")
        )


class Timer:
    """A poll source without sockets: polls end at once."""

    def items(self) -> list[tuple[int, int]]:
        return []

    def due(self) -> float:
        return 0.0

    def handle(self) -> None:
        pass
