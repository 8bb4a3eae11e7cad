"""Chats that were held with an adapter: they go on with it, or say what has become of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import shelf_models
from adapters_material import random_adapter
from cli_runs import GREEDY, TEMPLATE, Ran, Run
from terminal import ENTER, Terminal

from picoedge.chats.chat_folder import ChatFolder
from picoedge.chats.conversation import ChatAdapter
from picoedge.registry.packing import pack_model
from picoedge.store.adapters import read_adapter, write_adapter
from picoedge.store.pack.reader import Pack

MORE = ["-p", "more", "-n", "8", *GREEDY]


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    return ChatFolder(tmp_path / "XDG_STATE_HOME" / "picoedge" / "chats")


@pytest.fixture
def adapters(pack: Path, tmp_path: Path) -> list[Path]:
    """Two adapters of the tiny model, each of which changes what it says."""
    config = Pack.open(pack).config
    paths = [tmp_path / "mine", tmp_path / "yours"]
    for seed, path in enumerate(paths):
        write_adapter(path, random_adapter(config, ("q_proj", "down_proj"), 4, seed, 40.0))
    return paths


def kept(adapter: Path) -> ChatAdapter:
    return ChatAdapter(str(adapter), read_adapter(adapter).identity)


def write(folder: ChatFolder, pack: Path, adapter: ChatAdapter | None) -> int:
    """A kept chat of one turn, held with an adapter."""
    file = folder.create()
    file.append([{"kind": "chat", "model": "tiny", "source": str(pack), "at": 1e9}])
    if adapter is not None:
        file.append([{"kind": "adapter", **adapter.to_json()}])
    file.append([{"kind": "question", "text": "hello"}, {"kind": "answer", "text": "Hi!"}])
    file.close()
    return int(file.path.stem)


def notes(ran: Ran) -> list[str]:
    """What was said of the chat, not of the answer."""
    return [line for line in ran.err.splitlines() if not line.startswith("note: [")]


def test_a_chat_goes_on_with_its_adapter(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path]
) -> None:
    words = ["chat", pack, "--continue"]
    said = []
    for adapter, more in (
        (kept(adapters[0]), []),
        (None, ["--adapter", adapters[0]]),
        (None, []),
        (kept(adapters[0]), ["--adapter", "none"]),
        (kept(adapters[1]), []),
    ):
        number = write(folder, pack, adapter)
        ran = run(*words, str(number), *more, *MORE)
        assert ran.code == 0, ran.err
        said.append(ran.out)
    assert said[0] == said[1]
    assert said[2] == said[3]
    assert len(set(said)) == 3
    ran = run("chat", "--continue", *MORE)  # MODEL and adapter are those of the last chat
    assert (ran.code, notes(ran)) == (0, [])
    assert folder.read(5).adapter == kept(adapters[1])


def test_an_adapter_that_is_given_wins_and_is_kept(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path]
) -> None:
    number = str(write(folder, pack, kept(adapters[0])))
    ran = run("chat", "--continue", number, "--adapter", adapters[1], *MORE)
    told = f"note: chat 1 was with the adapter {adapters[0]}: it goes on with {adapters[1]}"
    assert (ran.code, notes(ran)) == (0, [told])
    ran = run("chat", "--continue", number, *MORE)
    assert (ran.code, notes(ran)) == (0, [])
    assert folder.read(1).adapter == kept(adapters[1])
    ran = run("chat", "--continue", number, "--adapter", "none", *MORE)
    told = f"note: chat 1 was with the adapter {adapters[1]}: it goes on without"
    assert (ran.code, notes(ran)) == (0, [told])
    assert folder.read(1).adapter is None
    ran = run("chat", "--continue", number, "--adapter", adapters[0], *MORE)
    told = f"note: chat 1 was without an adapter: it goes on with {adapters[0]}"
    assert (ran.code, notes(ran)) == (0, [told])
    assert len(folder.read(1).messages) == 10


def test_an_adapter_that_is_gone_is_one_line_with_what_to_type(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path]
) -> None:
    write(folder, pack, kept(adapters[0]))
    shutil.rmtree(adapters[0])
    before = folder.file(1).read_bytes()
    ran = run("chat", "--continue", *MORE)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"error: chat 1 was held with an adapter: {adapters[0]} does not exist "
        "(put it back, or go on without it: picoedge chat --continue 1 --adapter none)\n"
    )
    assert folder.file(1).read_bytes() == before
    assert run("chat", "--continue", "1", "--adapter", "none", *MORE).code == 0
    assert len(folder.read(1).messages) == 4


def test_an_adapter_that_has_changed_is_one_line_with_what_to_type(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path], tmp_path: Path
) -> None:
    spaced = tmp_path / "two words"
    adapters[0].rename(spaced)
    write(folder, pack, kept(spaced))
    write_adapter(spaced, replace(read_adapter(spaced), alpha=2.0))
    before = folder.file(1).read_bytes()
    ran = run("chat", "--continue", *MORE)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"error: {spaced} is no longer the adapter that chat 1 was held with "
        f"(to go on with what it is now: picoedge chat --continue 1 --adapter '{spaced}'; "
        "without it: picoedge chat --continue 1 --adapter none)\n"
    )
    assert folder.file(1).read_bytes() == before
    assert run("chat", "--continue", "1", "--adapter", spaced, *MORE).code == 0
    assert folder.read(1).adapter == kept(spaced)


def test_an_adapter_that_is_damaged_is_one_line(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path]
) -> None:
    write(folder, pack, kept(adapters[0]))
    (adapters[0] / "adapter_config.json").write_text("{")
    ran = run("chat", "--continue", *MORE)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "does not hold valid JSON" in ran.err
    assert "picoedge chat --continue 1 --adapter none" in ran.err


def test_another_model_goes_on_without_it(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path], tmp_path: Path
) -> None:
    write(folder, pack, kept(adapters[0]))
    shelf_models.write_folder(tmp_path / "twin")
    (tmp_path / "twin" / "chat_template.jinja").write_text(TEMPLATE)
    pack_model(tmp_path / "twin", tmp_path / "twin.pico", bits=8)
    ran = run("chat", tmp_path / "twin.pico", "--continue", "1", *MORE)
    assert (ran.code, notes(ran)) == (
        0,
        [
            "note: chat 1 was with tiny: twin goes on with it",
            f"note: chat 1 was with the adapter {adapters[0]}: it goes on without",
        ],
    )
    assert folder.read(1).adapter is None


def test_a_chat_that_cannot_begin_changes_nothing(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path], tmp_path: Path
) -> None:
    write(folder, pack, kept(adapters[0]))
    before = folder.file(1).read_bytes()
    shelf_models.write_folder(tmp_path / "plain")  # without a chat template
    pack_model(tmp_path / "plain", tmp_path / "plain.pico", bits=8)
    assert run("chat", tmp_path / "plain.pico", "--continue", "1", *MORE).code != 0
    assert folder.file(1).read_bytes() == before
    assert run("chat", "--continue", "1", *MORE).code == 0  # nothing holds its lock any more


def test_lists_name_the_adapter(
    run: Run, folder: ChatFolder, pack: Path, adapters: list[Path]
) -> None:
    write(folder, pack, None)
    assert run("chats").out.splitlines()[0].split() == ["ID", "WHEN", "MODEL"]
    write(folder, pack, kept(adapters[0]))
    header, plain, adapted = run("chats").out.splitlines()
    assert header.split() == ["ID", "WHEN", "MODEL", "ADAPTER"]
    assert plain.split()[3:] == ["tiny", "hello"]
    assert adapted.split()[3:] == ["tiny", "mine", "hello"]
    listed = json.loads(run("chats", "--json").out)
    assert [chat["adapter"] for chat in listed] == [None, kept(adapters[0]).to_json()]
    shown = run("chats", "show", "2").out
    assert shown == f"[adapter] {adapters[0]}\n>>> hello\nHi!\n"
    assert run("chats", "show", "1").out == ">>> hello\nHi!\n"
    for number, adapter in (("1", None), ("2", kept(adapters[0]).to_json())):
        assert json.loads(run("chats", "show", number, "--json").out)["adapter"] == adapter


def test_a_chat_with_an_adapter_goes_on_in_a_terminal(
    terminals: list[Terminal], tmp_path: Path, pack: Path, adapters: list[Path]
) -> None:
    def chat(*words: str | Path) -> Terminal:
        terminals.append(Terminal(tmp_path, ["-m", "picoedge", "chat", *words, "-n", "3", *GREEDY]))
        return terminals[-1]

    first = chat(pack, "--adapter", adapters[0])
    assert " · adapter mine" in first.until("/? for help")
    first.until(">>> ")
    for typed in ("hello", "/clear", "again"):
        first.press(typed + ENTER)
        first.until(typed)
        first.until(">>> ")
    first.press("/show" + ENTER)
    first.until(f"adapter         {adapters[0]}")
    first.until(">>> ")
    first.press("/bye" + ENTER)
    assert first.exit_code() == 0
    folder = ChatFolder(tmp_path / "picoedge" / "chats")
    assert [folder.read(number).adapter for number in (1, 2)] == [kept(adapters[0])] * 2
    second = chat("--continue")
    assert " · adapter mine" in second.until("/? for help")
    second.until(">>> ")
    second.press("/bye" + ENTER)
    assert second.exit_code() == 0
