"""Waiting for a message that comes at the same moment as the end of its connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mesh_sums import boards

from picoedge.errors import BoardLostError
from picoedge.mesh.group.channel import ArrayLimits
from picoedge.mesh.group.links import Links


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Iterator[Links]:
    """Links that do not spin, and whose polls end at once."""
    with boards(2, "star", ArrayLimits(rows=4, width=64), connect=False) as group:
        monkeypatch.setattr(group.links[0], "_spin_s", 0.0)
        monkeypatch.setattr(group.links[0], "_joining", lambda: ([], 0.0))
        yield group.links[0]


@pytest.mark.parametrize("call", [1, 2])
def test_a_message_that_came_just_before_the_end_is_read(
    links: Links, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    messages, calls = list[str](), list[int]()

    def concerning(ranks: object) -> BoardLostError | None:
        """Nothing until this call, before which the message and the end come together."""
        calls.append(len(calls) + 1)
        if len(calls) < call:
            return None
        messages.append("the last message")
        return BoardLostError("its connection ended")

    monkeypatch.setattr(links, "_concerning", concerning)
    assert links._wait(lambda: messages.pop() if messages else None, tuple, None, (1,))


def test_without_a_message_the_end_is_raised(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = BoardLostError("its connection ended")
    monkeypatch.setattr(links, "_concerning", lambda ranks: ended)
    with pytest.raises(BoardLostError, match="its connection ended"):
        links._wait(lambda: None, tuple, None, (1,))
