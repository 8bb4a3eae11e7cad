"""The chat on a real pseudo-terminal: keys as they are pressed, signals as they arrive."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from terminal import CTRL_C, CTRL_D, ENTER, PASTE_BEGINS, PASTE_ENDS, UP, Terminal

if TYPE_CHECKING:
    from chat_fixtures import StartChat

pytest_plugins = ["chat_fixtures"]


def test_a_conversation(start_chat: StartChat) -> None:
    terminal = start_chat("Hi there!")
    terminal.until("/? for help")
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi there!")
    terminal.until(">>> ")
    terminal.press("/bye" + ENTER)
    assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(start_chat: StartChat) -> None:
    terminal = start_chat("x", "Yes.")
    terminal.until(">>> ")
    terminal.press("forever" + ENTER)
    terminal.until("xxx")
    terminal.press(CTRL_C)
    terminal.until(">>> ")
    terminal.press("still there?" + ENTER)
    terminal.until("Yes.")
    terminal.until(">>> ")
    terminal.press(CTRL_D)
    assert terminal.exit_code() == 0


def test_ctrl_c_again_leaves_with_130_and_no_traceback(start_chat: StartChat) -> None:
    terminal = start_chat("x")
    terminal.until(">>> ")
    terminal.press("forever" + ENTER)
    terminal.until("xxx")
    terminal.press(CTRL_C)
    terminal.until(">>> ")
    terminal.press(CTRL_C)
    assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.screen


def test_ctrl_c_twice_at_the_prompt_leaves_with_130(start_chat: StartChat) -> None:
    terminal = start_chat()
    terminal.until(">>> ")
    terminal.press(CTRL_C)
    terminal.until("Ctrl-C again leaves")
    terminal.until(">>> ")
    terminal.press(CTRL_C)
    assert terminal.exit_code() == 130


def test_ctrl_c_drops_a_line_half_typed(start_chat: StartChat, tmp_path: Path) -> None:
    terminal = start_chat("Hi!")
    terminal.until(">>> ")
    terminal.press("never mind")
    terminal.until("never mind")
    terminal.press(CTRL_C)
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi!")
    terminal.until(">>> ")
    assert saved_questions(terminal, tmp_path) == ["hello"]


def test_a_paste_of_several_lines_is_one_message(start_chat: StartChat, tmp_path: Path) -> None:
    terminal = start_chat("ok")
    terminal.until(">>> ")
    terminal.press(f"{PASTE_BEGINS}one\rtwo\r\rfour{PASTE_ENDS}")
    terminal.until("four")
    terminal.press(ENTER)
    terminal.until("ok")
    terminal.until(">>> ")
    assert saved_questions(terminal, tmp_path) == ["one\ntwo\n\nfour"]


def test_three_quotes_ask_for_more_lines(start_chat: StartChat, tmp_path: Path) -> None:
    terminal = start_chat("ok")
    terminal.until(">>> ")
    terminal.press('"""one' + ENTER)
    terminal.until("... ")
    terminal.press('two"""' + ENTER)
    terminal.until("ok")
    terminal.until(">>> ")
    assert saved_questions(terminal, tmp_path) == ["one\ntwo"]


def test_history_comes_back_in_the_next_conversation(start_chat: StartChat, tmp_path: Path) -> None:
    first = start_chat("ok")
    first.until(">>> ")
    first.press("remember me" + ENTER)
    first.until("ok")
    first.until(">>> ")
    first.press(CTRL_D)
    assert first.exit_code() == 0
    history = tmp_path / "picoedge" / "history"
    assert "remember me" in history.read_text().splitlines()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    second = start_chat("ok")
    second.until(">>> ")
    second.press(UP)
    second.until("remember me")


def test_a_history_that_cannot_be_kept_is_said_once(start_chat: StartChat, tmp_path: Path) -> None:
    (tmp_path / "picoedge").write_text("in the way")
    terminal = start_chat("Hi!")
    terminal.until("no history is kept")
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi!")
    assert "no history" not in terminal.until(">>> ")


def saved_questions(terminal: Terminal, folder: Path) -> list[str]:
    """What the user has asked so far, by way of /save."""
    terminal.press(f"/save {folder}/talk.json" + ENTER)
    terminal.until("saved to")
    terminal.until(">>> ")
    messages = json.loads((folder / "talk.json").read_text())["messages"]
    return [m["content"] for m in messages if m["role"] == "user"]


@pytest.mark.parametrize("start_chat", ["b2 is back: loading"], indirect=True)
def test_lines_at_the_prompt_and_keys_that_are_pressed_meanwhile(start_chat: StartChat) -> None:
    terminal = start_chat("Hi!")
    terminal.until(">>> ")
    assert terminal.until("b2 is back: loading\r\n") == "\r\x1b[K"
    terminal.press("hello" + ENTER)
    terminal.until(">>> hello")
    terminal.until("Hi!")
    terminal.until(">>> ")
    terminal.press(CTRL_D)
    assert terminal.exit_code() == 0


def test_the_terminal_is_left_as_it_was_found(start_chat: StartChat) -> None:
    terminal = start_chat()
    before = terminal.settings()
    terminal.until(">>> ")
    terminal.press(CTRL_D)
    assert terminal.exit_code() == 0
    assert terminal.settings() == before
