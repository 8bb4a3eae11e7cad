"""The files of chats: torn lines, full disks, clocks that go back, two chats at once."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from picoedge.chats import chat_file
from picoedge.chats.chat_file import ChatFile, read_records
from picoedge.chats.chat_folder import ChatFolder
from picoedge.errors import UsageError

Q, A = {"kind": "question", "text": "grüß dich"}, {"kind": "answer", "text": "Hi!"}


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder(tmp_path / "picoedge" / "chats")


def begin(folder: ChatFolder, model: str = "parrot", question: str = "hello") -> int:
    file = folder.create()
    file.append([{"kind": "chat", "model": model}, {"kind": "question", "text": question}])
    file.close()
    return int(file.path.stem)


def test_a_chat_is_for_its_user_alone(folder: ChatFolder) -> None:
    path = folder.file(begin(folder))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_and_its_name_are_on_the_disk_when_an_append_returns(
    folder: ChatFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    file = folder.create()
    file.append([Q])
    file.append([A])
    file.close()
    assert synced[-3:] == ["chats", "1.jsonl", "1.jsonl"]
    assert "picoedge" in synced  # which names the folder of chats


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_last_line_is_dropped_and_overwritten(folder: ChatFolder, cut: int) -> None:
    file = folder.create()
    file.append([Q])
    whole = file.path.stat().st_size
    file.append([A])
    file.close()
    os.truncate(file.path, max(whole, file.path.stat().st_size - cut))
    left = [Q, A] if cut == 1 else [Q]  # of a line that lacks only its end, all is there
    assert read_records(file.path) == left
    again, records = folder.open(1)
    again.append([A])
    again.close()
    assert records == left
    assert read_records(file.path) == [*left, A]


@pytest.mark.parametrize(
    "damage", [b"\0" * 700, b"[1]\n", b"{}{}\n", b"\xff\xfe\n", b"[" * 200_000 + b"\n", b"\n\n"]
)
def test_lines_that_hold_no_record_cost_no_other(folder: ChatFolder, damage: bytes) -> None:
    file = folder.create()
    file.append([Q])
    file.close()
    with file.path.open("ab") as out:
        out.write(damage)
    again, records = folder.open(1)
    again.append([A])
    again.close()
    assert records == [Q]
    assert [r for r in read_records(file.path) if r] == [Q, A]


def test_a_full_disk_leaves_no_torn_line(
    folder: ChatFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder.create()
    file.append([Q])
    pwrite = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset > before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[:5], offset)

    before = file.path.stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=r"1\.jsonl"):
            file.append([A])
    assert file.path.stat().st_size == before
    file.append([A])
    file.close()
    assert read_records(file.path) == [Q, A]


def test_a_file_of_too_many_bytes_is_full(
    folder: ChatFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_file, "MAX_BYTES", 100)
    file = folder.create()
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        file.append([Q] * 3)
    file.close()


def test_a_record_that_no_context_holds_is_neither_written_nor_read(
    folder: ChatFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded, it takes eight times its bytes where one of its characters is a rare one."""
    long = {"kind": "question", "text": "\U000f0000" + "a" * 100}
    file = folder.create()
    file.append([long, A])
    monkeypatch.setattr(chat_file, "MAX_RECORD_BYTES", 100)
    assert read_records(file.path) == [A]
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        file.append([A, long])
    file.append([Q])
    file.close()
    assert read_records(file.path) == [A, Q]


def test_the_last_chat_is_the_one_used_last_whatever_the_clock_says(folder: ChatFolder) -> None:
    first, second = begin(folder), begin(folder)
    os.utime(folder.file(second), (4e9, 4e9))  # begun when the clock was in 2096
    file, _ = folder.open(first)
    file.append([A])
    file.close()
    assert folder.numbers() == [second, first]
    assert folder.last(None) == first
    assert begin(folder) == folder.last(None) == 3


def test_the_last_chat_of_a_model(folder: ChatFolder) -> None:
    begin(folder, "parrot")
    begin(folder, "raven")
    assert folder.last("parrot") == 1
    assert folder.last("owl") is None


def test_two_chats_at_once_do_not_meet(folder: ChatFolder) -> None:
    one, two = folder.create(), folder.create()
    one.append([Q])
    two.append([A])
    assert one.path != two.path
    with pytest.raises(UsageError, match="chat 1 goes on in another terminal"):
        folder.open(1)
    with pytest.raises(UsageError, match="chat 1 goes on in another terminal"):
        folder.remove(1)
    one.close()
    two.close()
    folder.remove(1)
    assert folder.numbers() == [2]


def test_a_chat_that_is_not_there(folder: ChatFolder) -> None:
    for act in (folder.open, folder.read, folder.remove):
        with pytest.raises(UsageError, match="there is no chat 7"):
            act(7)
    assert folder.summaries() == []


def test_files_that_are_no_chats_are_passed_over(folder: ChatFolder) -> None:
    begin(folder)
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "0.jsonl").write_text("{}")
    (folder.path / "5.jsonl").mkdir()
    os.mkfifo(folder.path / "6.jsonl")
    (folder.path / "7.jsonl").symlink_to(folder.file(1))
    assert folder.numbers() == [1]
    assert begin(folder) == 8


def test_a_list_shows_the_first_words_on_one_line(folder: ChatFolder) -> None:
    begin(folder, question="  why\nis\tthe sky " + "blue " * 10_000)
    (summary,) = folder.summaries()
    assert summary.first_words.startswith("why is the sky blue blue")
    assert len(summary.first_words) <= 80


def test_a_long_first_question_hides_no_model(folder: ChatFolder) -> None:
    begin(folder, question="x" * (1 << 20))
    (summary,) = folder.summaries()
    assert summary.model == "parrot"


def test_a_created_file_is_locked_at_once(tmp_path: Path) -> None:
    file = ChatFile.create(tmp_path / "1.jsonl")
    assert chat_file.in_use(tmp_path / "1.jsonl")
    file.close()
    assert not chat_file.in_use(tmp_path / "1.jsonl")
