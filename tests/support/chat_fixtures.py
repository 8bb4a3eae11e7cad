"""Chats on pseudo-terminals: `pytest_plugins = ["chat_fixtures"]`, then `start_chat`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal import ROOT, Terminal

CHILD = ROOT / "tests/support/chat_child.py"
StartChat = Callable[..., Terminal]


@pytest.fixture(params=["", "1"], ids=["", "attended"])
def start_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[StartChat]:
    """Begins chats that answer as told, and ends them; what they keep is in `tmp_path`.

    On this board alone, and over boards, which are attended to while the prompt waits.
    """
    monkeypatch.setenv("CHAT_ATTENDS", request.param)
    terminals: list[Terminal] = []

    def start_one(*answers: str) -> Terminal:
        terminals.append(Terminal(tmp_path, [CHILD, *answers]))
        return terminals[-1]

    yield start_one
    for terminal in terminals:
        terminal.close()
