"""What was done is still there after a power cut: every new name was synced in its folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import shelf_models
from syncs import lost_names, watching_syncs

from picoedge.chats.chat_folder import ChatFolder
from picoedge.files import make_folder, replace_file
from picoedge.host import measurements
from picoedge.mesh.identity.admission import found_cluster
from picoedge.registry.packing import pack_model
from picoedge.text.template.chosen import choose_template, keep_template


def make_keys(folder: Path) -> None:
    found_cluster(folder / "config" / "cluster", "home", "b1")


def measure(folder: Path) -> None:
    measurements.save(folder / "cache" / "picoedge", "compute", "k", {"x": 1.0}, 1e9)


def talk(folder: Path) -> None:
    file = ChatFolder(folder / "state" / "picoedge" / "chats").create()
    file.append([{"kind": "question", "text": "hello"}])
    file.close()


def pack_twice(folder: Path) -> None:
    shelf_models.write_gguf(folder / "m.gguf")
    for _ in range(2):  # the second replaces the first
        pack_model(folder / "m.gguf", folder / "models" / "m.pico")


def choose(folder: Path) -> None:
    pack_twice(folder)
    pack = folder / "models" / "m.pico"
    keep_template(pack, choose_template(pack, "chatml"))


@pytest.mark.parametrize("act", [make_keys, measure, talk, pack_twice, choose])
def test_every_new_name_is_synced(tmp_path: Path, act: Callable[[Path], None]) -> None:
    with watching_syncs() as seen:
        act(tmp_path)
    assert lost_names(seen, tmp_path) == []


def test_an_old_pack_goes_after_the_new_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from picoedge.store.pack import atomic_folder

    remove, unsynced = atomic_folder._remove, list[list[str]]()
    with watching_syncs() as seen:

        def watched(path: Path) -> None:
            unsynced.append([name for name in seen.names if name.endswith("m.pico")])
            remove(path)

        monkeypatch.setattr(atomic_folder, "_remove", watched)
        pack_twice(tmp_path)
    assert unsynced == [[]]


def test_folders_are_made_once_by_any_number_of_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from picoedge.files import make_folder\n"
        "make_folder(Path(sys.argv[1]), 0o700)"
    )
    deep = tmp_path / "a" / "b" / "c"
    command = [sys.executable, "-c", code, str(deep)]
    made = [subprocess.Popen(command, cwd=Path(__file__).parents[1]) for _ in range(4)]
    assert [process.wait(60) for process in made] == [0] * 4
    assert deep.is_dir()


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(OSError, match="exists"):
            make_folder(path)


def test_a_replaced_file_has_its_bytes_before_its_name(tmp_path: Path) -> None:
    with watching_syncs() as seen:
        replace_file(tmp_path / "roster.json", b"{}")
    assert lost_names(seen, tmp_path) == []
