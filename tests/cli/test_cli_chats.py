"""`picoedge chats`, and `picoedge chat --continue` after kills, on a real terminal."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from cli_runs import GREEDY, Run
from terminal import ENTER, Terminal

from picoedge.chats.chat_folder import ChatFolder
from picoedge.chats.conversation import turn


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder(tmp_path / "XDG_STATE_HOME" / "picoedge" / "chats")


def write(folder: ChatFolder, model: str, *texts: str, source: str = "") -> int:
    """A kept chat of these questions and answers by turns."""
    file = folder.create()
    file.append([{"kind": "chat", "model": model, "source": source, "at": 1e9}])
    for i, text in enumerate(texts):
        file.append([{"kind": ("question", "answer")[i % 2], "text": text}])
    file.close()
    return int(file.path.stem)


def test_chats_are_listed_in_the_order_of_use(run: Run, folder: ChatFolder) -> None:
    write(folder, "parrot", "why is\nthe sky blue?", "It is.")
    write(folder, "raven", "\x1b[31mred")
    ran = run("chats")
    lines = ran.out.splitlines()
    assert lines[0].split() == ["ID", "WHEN", "MODEL"]
    assert lines[1].startswith("1 ")
    assert lines[1].endswith("parrot  why is the sky blue?")
    assert lines[2].endswith("raven   [31mred")
    listed = json.loads(run("chats", "--json").out)
    assert [(chat["id"], chat["model"]) for chat in listed] == [(1, "parrot"), (2, "raven")]


def test_a_chat_is_shown(run: Run, folder: ChatFolder) -> None:
    write(folder, "parrot", "hello", "Hi!", "more")
    assert run("chats", "show", "1").out == ">>> hello\nHi!\n>>> more\n"
    shown = json.loads(run("chats", "show", "1", "--json").out)
    assert shown["messages"] == list(turn("hello", "Hi!"))
    assert shown["unanswered"] == "more"


def test_chats_are_removed(run: Run, folder: ChatFolder) -> None:
    for _ in range(4):
        write(folder, "parrot", "hello")
    assert run("chats", "rm", "2", "3").out == "removed chat 2\nremoved chat 3\n"
    assert folder.numbers() == [1, 4]
    assert run("chats", "rm", "3").err == "error: there is no chat 3 (picoedge chats lists them)\n"
    assert run("chats", "rm", "--all").code == 0
    assert folder.numbers() == []
    assert run("chats").out == ""
    assert run("chats", "rm").code == 2
    assert run("chats", "rm", "1", "--all").code == 2


def test_one_more_answer_of_a_chat(run: Run, folder: ChatFolder, pack: Path) -> None:
    write(folder, "raven", "not this one")
    number = write(folder, "tiny", "hello", "Hi!", source=str(pack))
    write(folder, "owl", "nor this", source=str(pack))
    ran = run("chat", pack, "--continue", "-p", "more", "-n", "5", *GREEDY)
    assert (ran.code, ran.out[-1]) == (0, "\n")
    last = folder.read(number).messages[-2:]
    assert [message["content"] for message in last] == ["more", ran.out[:-1]]
    assert folder.last(None) == number
    again = run("chat", "--continue", "-p", "and?", "-n", "5", *GREEDY)  # MODEL is the chat's
    assert again.code == 0
    assert len(folder.read(number).messages) == 6


def test_one_answer_without_continue_keeps_nothing(
    run: Run, folder: ChatFolder, pack: Path
) -> None:
    assert run("chat", pack, "-p", "hi", "-n", "5").code == 0
    assert not folder.path.exists()


def test_a_chat_of_another_model_says_so(run: Run, folder: ChatFolder, pack: Path) -> None:
    write(folder, "raven", "hello", "Hi!")
    ran = run("chat", pack, "--continue", "1", "-p", "more", "-n", "5")
    assert ran.code == 0
    assert "chat 1 was with raven: tiny goes on with it" in ran.err
    assert folder.read(1).model == "tiny"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--continue"], "no chat is kept on this board"),
        (["--continue", "--no-history"], "--continue needs the history"),
        (["--continue", "3"], "no chat is kept on this board"),
    ],
)
def test_a_chat_that_cannot_go_on_is_refused(
    run: Run, pack: Path, words: list[str], error: str
) -> None:
    ran = run("chat", pack, *words, "-p", "more")
    assert ran.code == 2
    assert ran.err.startswith(f"error: {error}")


def test_a_chat_of_this_model_that_is_not_there(run: Run, folder: ChatFolder, pack: Path) -> None:
    write(folder, "raven", "hello")
    ran = run("chat", pack, "--continue", "-p", "more")
    assert (ran.code, ran.out) == (2, "")
    assert "no chat with tiny is kept" in ran.err
    assert run("chat", pack, "--continue", "9", "-p", "more").code == 2
    assert "'raven' is no chat" in run("chat", pack, "--continue", "raven", "-p", "more").err


def test_a_chat_goes_on_after_a_kill_in_an_answer(
    terminals: list[Terminal], tmp_path: Path, pack: Path
) -> None:
    def chat(*words: str) -> Terminal:
        command = ["-m", "picoedge", "chat", str(pack), *GREEDY, *words]
        terminals.append(Terminal(tmp_path, command))
        return terminals[-1]

    first = chat("-n", "3")
    first.until(">>> ")
    first.press("hello" + ENTER)
    first.until("stopped after 3 tokens")
    first.until(">>> ")
    first.press("/set n 500" + ENTER)
    first.until("n is 500")
    first.until(">>> ")
    first.press("and now?" + ENTER)
    first.until("\n")
    folder = ChatFolder(tmp_path / "picoedge" / "chats")
    first.until("\N{REPLACEMENT CHARACTER}")  # the answer has begun
    first.process.send_signal(signal.SIGKILL)
    first.exit_code()
    assert folder.read(1).unanswered == "and now?"
    second = chat("--continue")
    second.until(">>> and now?")
    second.until("\N{REPLACEMENT CHARACTER}")
    second.until(">>> ")
    second.press("/bye" + ENTER)
    assert second.exit_code() == 0
    assert [m["content"] for m in folder.read(1).messages][::2] == ["hello", "and now?"]
