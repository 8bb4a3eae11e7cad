"""Text as people have it: files and folders of it, in one order, and everything that is wrong."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from picoedge.errors import DataError
from picoedge.train.data.records import MAX_LINE
from picoedge.train.data.texts import Passage, cut_passages, find_texts


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def names(folder: Path, *paths: Path) -> list[str]:
    return [str(file.path.relative_to(folder)) for file in find_texts(paths or [folder]).files]


def passages(*paths: Path) -> list[Passage]:
    return list(find_texts(paths).passages(1000))


def test_folders_are_read_by_name_and_hidden_files_passed_over(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.txt": "b", "a.md": "a", "Z.TXT": "z", "sub/2.txt": "2", "sub/1.jsonl": "{}",
            "sub/deep/x.txt": "x", ".git/c.txt": "c", ".d.txt": "d", "p.py": "p", "e.txt": "",
            "m.run/log.jsonl": "{", "m.pico/a.txt": "{",
        },
    )  # fmt: skip
    found = ["Z.TXT", "a.md", "b.txt", "sub/1.jsonl", "sub/2.txt", "sub/deep/x.txt"]
    assert names(tmp_path) == found
    assert names(tmp_path, tmp_path / "sub", tmp_path) == [*found[3:], *found[:3]]
    notes = find_texts([tmp_path]).notes
    assert any("1 file, empty" in note for note in notes)
    assert any("1 file, of another kind" in note for note in notes)
    assert any("2 folders, a pack or a run" in note for note in notes)


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write(tmp_path, {"in/a.txt": "a", "out/b.txt": "b"})
    (tmp_path / "in/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to("self")  # no text, and leads nowhere
    (tmp_path / "in/out").symlink_to(tmp_path / "out")
    (tmp_path / "in/again.txt").symlink_to(tmp_path / "in/a.txt")
    assert names(tmp_path, tmp_path / "in") == ["in/a.txt", "in/out/b.txt"]
    (tmp_path / "in/gone.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        find_texts([tmp_path / "in"])


def test_a_path_that_is_no_text_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.json": "{}", "b.pdf": "x", "c": "x", "empty.txt": "", "none/x.py": "x"})
    os.mkfifo(tmp_path / "pipe.txt")
    for path, message in (
        ("a.json", r"one JSON object a line"),
        ("b.pdf", r"save its text"),
        ("c", r"rename it to \.txt"),
        ("gone.txt", "does not exist"),
        ("empty.txt", "its files are empty"),
        ("none", "no text in"),
        ("pipe.txt", "no regular file"),
    ):
        with pytest.raises(DataError, match=message):
            find_texts([tmp_path / path])
    with pytest.raises(DataError, match="no regular file"):
        find_texts([Path("/dev/null")])


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.txt": "a"})

    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=f"cannot read {tmp_path}: permission denied"):
        find_texts([tmp_path])


def test_a_long_text_is_cut_at_empty_lines_and_nothing_is_lost() -> None:
    paragraphs = ["word " * n + "end." for n in (40, 90, 10, 5, 300)]
    text = "\n\n".join(paragraphs) + "\n" + "x" * 900
    for chunk in (7, 100, 10_000):
        chunks = [text[at : at + chunk] for at in range(0, len(text), chunk)]
        cut = list(cut_passages(["\n \n", *chunks, " \n"], 300))
        assert "".join(passage.text for passage in cut) == text
        assert max(len(passage.text) for passage in cut) == 300
        assert [p.begins for p in cut] == [True] + [False] * (len(cut) - 1)
        assert [p.ends for p in cut] == [False] * (len(cut) - 1) + [True]
        assert cut[0].text.endswith("end.\n\n")
    assert list(cut_passages([" ", "\n\t"], 300)) == []


def test_lines_of_jsonl_are_texts_and_conversations(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A", "other": 1},
    ]
    lines = [
        {"text": "  Plain. "}, {"prompt": "P", "completion": "C", "id": 7},
        {"messages": messages, "text": "passed over"},
    ]  # fmt: skip
    write(tmp_path, {"a.jsonl": "\ufeff" + "\n\n".join(map(json.dumps, lines)), "b.txt": "B"})
    assert passages(tmp_path) == [
        Passage("Plain."),
        Passage(
            "", ({"role": "user", "content": "P"}, {"role": "assistant", "content": "C"})
        ),
        Passage("", ({"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
                     {"role": "assistant", "content": "A"})),
        Passage("B"),
    ]  # fmt: skip


def test_every_broken_line_is_told_and_the_file_left_alone(tmp_path: Path) -> None:
    good, tool = '{"text": "t"}', '{"messages": [{"role": "tool\x1b", "content": "x"}]}'
    tool = json.dumps({"messages": [{"role": "tool\x1b[2J", "content": "x"}]})
    lines = [
        good, "{", good, "[1]", "{}", "", '{"text": 3}', "{", "{", "{", tool, '{"prompt": "x"}',
        '{"messages": []}', '{"messages": [{"role": "user"}]}', '{"text": "\\ud800"}',
        "[" * 100_000, '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
    ]  # fmt: skip
    path = write(tmp_path, {"a.jsonl": "\n".join(lines)}) / "a.jsonl"
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        passages(path)
    for part in (
        f"{path}: lines 2, 8-10, 15-16: not valid JSON", "line 4: a message is not an object",
        'line 5: none of "messages"', "line 7: text is not text", "line 11: unknown role 'tool[2J'",
        "line 12: completion is missing", "line 13: no message in it",
        "line 14: messages.0.content is missing", "line 17: a message's content is no text",
    ):  # fmt: skip
        assert part in caught.value.message
    assert "not changed" in caught.value.hint
    assert path.read_bytes() == before


def test_a_flood_of_broken_lines_is_counted(tmp_path: Path) -> None:
    lines = [("{" if i % 2 else '{"text": "t"}') for i in range(4000)]
    path = write(tmp_path, {"a.jsonl": "\n".join(lines)}) / "a.jsonl"
    with pytest.raises(DataError, match=r"lines 2, 4, .*; and 1600 more lines \(") as caught:
        passages(path)
    assert len(caught.value.message) < 4000
    roles = [json.dumps({"messages": [{"role": f"r{i}", "content": ""}]}) for i in range(40)]
    path.write_text("\n".join(roles))
    with pytest.raises(DataError, match="and 30 more lines"):
        passages(path)


def test_a_line_of_many_small_values_is_told_and_commas_in_texts_are_none(tmp_path: Path) -> None:
    path, text = tmp_path / "a.jsonl", "a, [b], {c} " * 100_000
    flood = '{"text": "", "more": [' + "{}," * 140_000 + "0]}"
    path.write_text(json.dumps({"text": text}) + "\n" + flood)
    passages = find_texts([path]).passages(len(text))
    assert next(passages).text == text.rstrip()
    with pytest.raises(DataError) as refused:
        next(passages)
    assert refused.value.message.startswith(f"{path}: line 2: holds more than 131072 values")


def test_all_files_with_faults_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "good", "b.txt": b"\xff", "c.jsonl": "{", "d.txt": b"\0"})
    with pytest.raises(DataError) as caught:
        passages(tmp_path)
    message = caught.value.message
    assert all(name in message for name in ("b.txt", "c.jsonl: line 1", "d.txt"))
    assert "a.txt" not in message
    write(tmp_path, {f"{i}.txt": b"\xff" for i in range(9)})
    with pytest.raises(DataError, match="and 7 more files"):
        passages(tmp_path)


def test_a_line_without_end_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("picoedge.train.data.records.MAX_LINE", 1000)
    write(tmp_path, {"a.jsonl": "x" * 5000 + '\n{"text": "t"}'})
    assert MAX_LINE > 1000
    with pytest.raises(DataError, match="line 1: longer than 1000 characters"):
        passages(tmp_path / "a.jsonl")


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words of a line.\n" * 600_000)
    tracemalloc.start()
    try:
        characters = sum(len(each.text) for each in find_texts([tmp_path]).passages(16_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert characters == 22 * 600_000 - 1
    assert peak < 8 << 20
