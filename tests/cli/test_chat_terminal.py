"""The chat on a real pseudo-terminal: keys as they are pressed, signals as they arrive."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CTRL_C, CTRL_D, UP, ENTER = "\x03", "\x04", "\x1b[A", "\r"
PASTE_BEGINS, PASTE_ENDS = "\x1b[200~", "\x1b[201~"
LIMIT_S = 30
NUDGE_S = 0.5


class Terminal:
    """A chat whose screen is read and whose keys are pressed."""

    def __init__(self, state: Path, answers: tuple[str, ...]) -> None:
        self._master, slave = os.openpty()
        environ = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "HOME": str(state)}
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ["PYTHONPATH"] = os.pathsep.join(path)
        environ.pop("INPUTRC", None)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/chat_child.py"), *answers],
            stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.screen = ""

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str) -> str:
        """Read on until `text` has come; what came before it since the last time."""
        end = time.monotonic() + LIMIT_S
        while text not in self.screen:
            if not self._more(end - time.monotonic()):
                pytest.fail(f"no {text!r} in {self.screen!r}")
        seen, _, self.screen = self.screen.partition(text)
        return seen

    def exit_code(self) -> int:
        end = time.monotonic() + LIMIT_S
        while self._more(end - time.monotonic()):
            pass
        return self.process.wait(LIMIT_S)

    def _more(self, left_s: float) -> bool:
        """Read once; False where nothing comes any more."""
        end = time.monotonic() + left_s
        while not select.select([self._master], [], [], NUDGE_S)[0]:
            if time.monotonic() > end:
                return False
            self._nudge()
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)

    def _nudge(self) -> None:
        """Resize the window, which changes nothing but wakes Python's readline.

        It sleeps through a Ctrl-C of the very microseconds between its prompt and its wait
        (CPython's readline_until_enter_or_signal), which a loaded machine makes long.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Begins chats that answer as told, and ends them; their history is in `tmp_path`."""
    terminals: list[Terminal] = []

    def start_one(*answers: str) -> Terminal:
        terminals.append(Terminal(tmp_path, answers))
        return terminals[-1]

    yield start_one
    for terminal in terminals:
        terminal.close()


def test_a_conversation(start: Start) -> None:
    terminal = start("Hi there!")
    terminal.until("/? for help")
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi there!")
    terminal.until(">>> ")
    terminal.press("/bye" + ENTER)
    assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(start: Start) -> None:
    terminal = start("x", "Yes.")
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


def test_ctrl_c_again_leaves_with_130_and_no_traceback(start: Start) -> None:
    terminal = start("x")
    terminal.until(">>> ")
    terminal.press("forever" + ENTER)
    terminal.until("xxx")
    terminal.press(CTRL_C)
    terminal.until(">>> ")
    terminal.press(CTRL_C)
    assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.screen


def test_ctrl_c_twice_at_the_prompt_leaves_with_130(start: Start) -> None:
    terminal = start()
    terminal.until(">>> ")
    terminal.press(CTRL_C)
    terminal.until("Ctrl-C again leaves")
    terminal.until(">>> ")
    terminal.press(CTRL_C)
    assert terminal.exit_code() == 130


def test_ctrl_c_drops_a_line_half_typed(start: Start, tmp_path: Path) -> None:
    terminal = start("Hi!")
    terminal.until(">>> ")
    terminal.press("never mind")
    terminal.until("never mind")
    terminal.press(CTRL_C)
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi!")
    terminal.until(">>> ")
    assert saved_questions(terminal, tmp_path) == ["hello"]


def test_a_paste_of_several_lines_is_one_message(start: Start, tmp_path: Path) -> None:
    terminal = start("ok")
    terminal.until(">>> ")
    terminal.press(f"{PASTE_BEGINS}one\rtwo\r\rfour{PASTE_ENDS}")
    terminal.until("four")
    terminal.press(ENTER)
    terminal.until("ok")
    terminal.until(">>> ")
    assert saved_questions(terminal, tmp_path) == ["one\ntwo\n\nfour"]


def test_three_quotes_ask_for_more_lines(start: Start, tmp_path: Path) -> None:
    terminal = start("ok")
    terminal.until(">>> ")
    terminal.press('"""one' + ENTER)
    terminal.until("... ")
    terminal.press('two"""' + ENTER)
    terminal.until("ok")
    terminal.until(">>> ")
    assert saved_questions(terminal, tmp_path) == ["one\ntwo"]


def test_history_comes_back_in_the_next_conversation(start: Start, tmp_path: Path) -> None:
    first = start("ok")
    first.until(">>> ")
    first.press("remember me" + ENTER)
    first.until("ok")
    first.until(">>> ")
    first.press(CTRL_D)
    assert first.exit_code() == 0
    history = tmp_path / "picoedge" / "history"
    assert "remember me" in history.read_text().splitlines()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    second = start("ok")
    second.until(">>> ")
    second.press(UP)
    second.until("remember me")


def test_a_history_that_cannot_be_kept_is_said_once(start: Start, tmp_path: Path) -> None:
    (tmp_path / "picoedge").write_text("in the way")
    terminal = start("Hi!")
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
