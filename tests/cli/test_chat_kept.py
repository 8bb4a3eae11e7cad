"""Kept chats: a conversation is read as it was written, also after errors and full disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fake_model import prompter_for, scripted_session
from typed_console import TypedConsole

from picoedge.chats.chat_file import ChatFile
from picoedge.chats.chat_folder import ChatFolder
from picoedge.chats.conversation import turn
from picoedge.cli.chat_log import ChatLog
from picoedge.cli.chat_loop import converse
from picoedge.cli.chat_turns import Chat, ChatSettings


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder(tmp_path / "chats")


def kept(
    folder: ChatFolder,
    typed: list[str],
    *answers: str,
    number: int | None = None,
    fails_at: int = -1,
) -> tuple[Chat, str]:
    """A chat that is kept in `folder`, and its transcript."""
    warned: list[str] = []
    console, session = TypedConsole([*typed]), scripted_session(*answers)
    session.model.fails_at = fails_at  # type: ignore[attr-defined]
    log = ChatLog(folder, warned.append, lambda: 1e9)
    if number is None:
        log.begin("parrot", "")
    else:
        log.resume(number)
    chat = Chat(session, prompter_for(session), console, ChatSettings(), log)
    assert converse(chat) == 0
    log.close()
    return chat, console.transcript.partition("\n")[2] + "".join(f"({line})" for line in warned)


SCRIPTS = [
    ["hello", "more"],
    ["hello", "/regen", "more"],
    ["/set system Be brief.", "hello", "/set temperature 0.5", "/set stop X"],
    ["hello", "/set system", "/regen"],
    ["hello", "/nothing", "/set top_p 7", "more"],
]


@pytest.mark.parametrize("typed", SCRIPTS, ids=" ".join)
def test_a_kept_chat_is_read_as_it_was_held(folder: ChatFolder, typed: list[str]) -> None:
    chat, _ = kept(folder, typed, "Hi!", "Ho!", "Hm.")
    assert folder.read(1) == chat.log.conversation
    assert chat.messages


def test_a_chat_goes_on_where_it_was_left(folder: ChatFolder) -> None:
    kept(folder, ["/set system Be brief.", "hello"], "Hi!")
    chat, transcript = kept(folder, ["more"], "Ho!", number=1)
    assert transcript == ">>> hello\nHi!\n>>> more\nHo!\n>>> \n"
    assert chat.system == "Be brief."
    assert folder.read(1).messages == (*turn("hello", "Hi!"), *turn("more", "Ho!"))
    assert folder.numbers() == [1]


def test_a_question_without_an_answer_is_answered_first(folder: ChatFolder) -> None:
    kept(folder, ["hello", "and now?"], "Hi!", fails_at=4)
    assert folder.read(1).unanswered == "and now?"
    _, transcript = kept(folder, ["more"], "Now.", "Ho!", number=1)
    assert transcript == ">>> and now?\nNow.\n>>> more\nHo!\n>>> \n"


def test_regen_asks_again_after_an_error(folder: ChatFolder) -> None:
    chat, transcript = kept(folder, ["hello", "/regen"], "Hi!", fails_at=0)
    assert transcript.endswith("/regen\nHi!\n>>> \n")
    assert chat.messages == list(turn("hello", "Hi!"))


def test_clear_begins_a_new_file_with_the_same_settings(folder: ChatFolder) -> None:
    kept(folder, ["/set system Be brief.", "hello", "/clear", "again"], "Hi!", "Ho!")
    assert folder.numbers() == [1, 2]
    assert [folder.read(n).system for n in (1, 2)] == ["Be brief."] * 2
    assert folder.read(1).messages == turn("hello", "Hi!")
    assert folder.read(2).messages == turn("again", "Ho!")


def test_load_is_kept(folder: ChatFolder, tmp_path: Path) -> None:
    kept(folder, ["hello", f"/save {tmp_path}/talk.json"], "Hi!")
    chat, _ = kept(folder, [f"/load {tmp_path}/talk.json", "more"], "Ho!")
    assert folder.read(2) == chat.log.conversation
    assert chat.messages == [*turn("hello", "Hi!"), *turn("more", "Ho!")]


def test_a_chat_without_a_question_leaves_no_file(folder: ChatFolder) -> None:
    kept(folder, ["/set system Be brief.", "/show", "/clear"])
    assert not folder.path.exists()


def test_a_folder_that_cannot_be_made_is_said_once_and_the_chat_goes_on(folder: ChatFolder) -> None:
    folder.path.write_text("in the way")
    chat, transcript = kept(folder, ["hello", "more"], "Hi!", "Ho!")
    assert transcript.count("this chat is not kept while that is so") == 1
    assert str(folder.path) in transcript
    assert len(chat.messages) == 4


def test_records_that_a_full_disk_refused_are_written_when_there_is_room(
    folder: ChatFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, calls = ChatFile.append, iter(range(100))

    def sometimes_full(self: ChatFile, records: list[dict[str, object]]) -> None:
        if next(calls) in (1, 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        append(self, records)

    monkeypatch.setattr(ChatFile, "append", sometimes_full)
    chat, transcript = kept(folder, ["hello", "more"], "Hi!", "Ho!")
    assert transcript.count("no space left on device") == 1
    assert folder.read(1) == chat.log.conversation


def test_a_full_file_is_followed_by_another(
    folder: ChatFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("picoedge.chats.chat_file.MAX_BYTES", 900)
    typed = ["a" * 50, "b" * 50, "/regen", "c"]
    chat, transcript = kept(folder, typed, *(letter * 90 for letter in "wxyz"))
    assert "not kept" not in transcript
    assert len(folder.numbers()) > 1
    assert folder.read(folder.numbers()[-1]) == chat.log.conversation


def test_without_a_history_nothing_is_written(tmp_path: Path) -> None:
    session = scripted_session("Hi!")
    chat = Chat(session, prompter_for(session), TypedConsole(["hello"]), ChatSettings())
    assert converse(chat) == 0
    assert chat.messages == list(turn("hello", "Hi!"))
    assert list(tmp_path.iterdir()) == []
