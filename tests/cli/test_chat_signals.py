"""Signals and closed streams: a chat ends clean, says nothing odd, and what was said is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import shelf_models
from cli_runs import GREEDY, process
from terminal import CTRL_C, ENTER, PASTE_BEGINS, PASTE_ENDS, ROOT, Terminal

from picoedge.chats.chat_folder import ChatFolder

if TYPE_CHECKING:
    from chat_fixtures import StartChat

pytest_plugins = ["chat_fixtures"]

ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder(tmp_path / "picoedge" / "chats")


def ask_forever(start_chat: StartChat) -> Terminal:
    terminal = start_chat("x", "Yes.")
    terminal.until(">>> ")
    terminal.press("forever" + ENTER)
    terminal.until("xxx")
    return terminal


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_in_an_answer_keeps_the_answer_so_far(
    start_chat: StartChat, folder: ChatFolder, number: signal.Signals
) -> None:
    terminal = ask_forever(start_chat)
    terminal.process.send_signal(number)
    assert terminal.exit_code() == ENDS[number]
    assert terminal.screen.strip("x\r\n") == ""
    question, answer = folder.read(1).messages
    assert question["content"] == "forever"
    assert set(answer["content"]) == {"x"}


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_at_the_prompt_leaves_the_terminal_as_it_was(
    start_chat: StartChat, folder: ChatFolder, number: signal.Signals
) -> None:
    terminal = start_chat("Hi!")
    before = terminal.settings()
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi!")
    terminal.until(">>> ")
    terminal.press("half a li")
    terminal.until("half a li")
    assert not terminal.settings()[3] & termios.ICANON  # the line editor's
    terminal.process.send_signal(number)
    assert terminal.exit_code() == ENDS[number]
    assert terminal.settings() == before
    assert "Traceback" not in terminal.screen
    assert len(folder.read(1).messages) == 2


def test_a_closed_terminal_keeps_the_answer_so_far(
    start_chat: StartChat, folder: ChatFolder
) -> None:
    terminal = ask_forever(start_chat)
    terminal.hang_up()
    assert terminal.process.wait(30) in (1, 129)  # by the write that fails, or by the signal
    assert set(folder.read(1).messages[1]["content"]) == {"x"}


def test_a_terminal_closed_at_the_prompt(start_chat: StartChat, folder: ChatFolder) -> None:
    terminal = start_chat("Hi!")
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi!")
    terminal.until(">>> ")
    terminal.hang_up()
    assert terminal.process.wait(30) in (0, 1, 129)
    assert len(folder.read(1).messages) == 2


def test_ctrl_c_before_a_signal_changes_nothing(start_chat: StartChat, folder: ChatFolder) -> None:
    terminal = ask_forever(start_chat)
    terminal.press(CTRL_C)
    terminal.until(">>> ")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.exit_code() == 143
    assert len(folder.read(1).messages) == 2


def test_pasted_control_characters_and_torn_characters_are_text(
    start_chat: StartChat, folder: ChatFolder
) -> None:
    terminal = start_chat("ok", "ok")
    terminal.until(">>> ")
    terminal.press(f"{PASTE_BEGINS}a\x07b\x1b[31mc\x04d{PASTE_ENDS}")
    terminal.press(ENTER)
    terminal.until("ok")
    terminal.until(">>> ")
    terminal.press_bytes(b"caf\xe9" + ENTER.encode())
    terminal.until("ok")
    terminal.until(">>> ")
    first, _, second, _ = folder.read(1).messages
    assert first["content"] == "a\x07b\x1b[31mc\x04d"
    assert second["content"].startswith("caf")


def test_a_program_that_was_told_to_ignore_hangups_does(pack: Path) -> None:
    words = ["generate", str(pack), "-p", "hi", "-n", "300", *GREEDY]
    with process(*words, stdout=subprocess.PIPE, preexec_fn=ignore_hangups) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        child.send_signal(signal.SIGHUP)
        child.communicate()
        assert child.returncode == 0


def ignore_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


PACK_SLOWLY = """
import signal, sys
from picoedge.__main__ import main
from picoedge.store.pack import atomic_folder

def wait(folder):
    print("packing", flush=True)
    signal.pause()

atomic_folder.sync_tree = wait
sys.exit(main())
"""


@pytest.mark.parametrize("number", [*ENDS, signal.SIGINT])
def test_a_signal_while_a_model_is_packed_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    shelf_models.write_gguf(tmp_path / "model.gguf")
    command = [sys.executable, "-c", PACK_SLOWLY, "pack", "model.gguf"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"packing\n"
        assert len(list(tmp_path.iterdir())) == 2
        child.send_signal(number)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (ENDS.get(number, 130), b"")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_closed_streams_are_no_defect(pack: Path, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    words = ["generate", str(pack), "-p", "hi", "-n", "5", *GREEDY]
    with process(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=close) as child:
        out, err = child.communicate()
    assert child.returncode == 0
    assert err == b""
    assert bool(out) is (1 not in closed)


def test_several_signals_at_once_end_it_as_one(start_chat: StartChat, folder: ChatFolder) -> None:
    terminal = start_chat("Hi!")
    terminal.until(">>> ")
    terminal.press("hello" + ENTER)
    terminal.until("Hi!")
    terminal.until(">>> ")
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        terminal.process.send_signal(number)
    code = terminal.exit_code()
    # A late one finds only the interpreter left, and ends it: a shell reports the same code.
    assert code in (129, 143, -1, -15), terminal.screen
    assert "Traceback" not in terminal.screen
    assert len(folder.read(1).messages) == 2
