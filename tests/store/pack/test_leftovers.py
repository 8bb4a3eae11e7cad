"""What killed packers leave: swept by whatever packs, pulls or removes next, and by the doctor."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import shelf_models
from store_models import write_gguf

from picoedge.engine.doctor import check_leftovers
from picoedge.registry.catalogue import FetchSettings
from picoedge.registry.shelf import Shelf
from picoedge.store.pack import atomic_folder
from picoedge.store.pack.atomic_folder import scratch_folder, sweep
from picoedge.store.pack.packer import pack_source
from picoedge.store.sources.source import open_source

# Packs argv[1] as argv[2], and stops for good once half of it is written.
STOPPED = """
import sys, time
from pathlib import Path
from picoedge.store.pack.packer import pack_source
from picoedge.store.sources.source import open_source

def progress(done, total):
    if done > total / 2:
        print("half", flush=True)
        time.sleep(600)

pack_source(open_source(Path(sys.argv[1])), Path(sys.argv[2]), progress=progress)
"""


def killed_packer(gguf: Path, out: Path, number: int = signal.SIGKILL) -> None:
    command = [sys.executable, "-c", STOPPED, str(gguf), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        partial = next(out.parent.glob(f"{out.name}.partial-*"))
        assert sweep(out.parent) == 0  # it lives
        assert partial.is_dir()
        os.kill(child.pid, number)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_packers_folder_is_swept_by_a_pack_of_another_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "packs").mkdir()
    killed_packer(tmp_path / "m.gguf", tmp_path / "packs" / "one.pico")
    assert len(names(tmp_path / "packs")) == 1
    pack_source(open_source(tmp_path / "m.gguf"), tmp_path / "packs" / "two.pico")
    assert names(tmp_path / "packs") == ["two.pico"]


def shelf_at(folder: Path) -> Shelf:
    return Shelf(folder, {}, FetchSettings(tries=1))


@pytest.mark.parametrize("by", ["rm", "doctor", "pull"])
def test_a_killed_packers_folder_is_swept_by_other_commands(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from picoedge.cli.main import main

    monkeypatch.setenv("PICOEDGE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "models"
    shelf = shelf_at(folder)
    shelf.open(str(shelf_models.write_gguf(tmp_path / "small.gguf")))
    name = shelf.items()[0].name
    write_gguf(tmp_path / "m.gguf")
    killed_packer(tmp_path / "m.gguf", folder / "m.pico")
    if by == "doctor":
        assert "removed" in check_leftovers(shelf).text
    else:
        assert main(["pull", "no-such-model"]) == 2
        assert any("partial" in name for name in names(folder))
        (folder / f"{name}.pico").rename(folder / "smollm2-135m.pico")  # here already
        assert main(["pull"] if by == "pull" else ["rm", "-y", "smollm2-135m"]) == 0
    assert not any("partial" in name for name in names(folder))


def test_folders_of_others_and_of_the_living_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.partial-abcd").mkdir()
    (tmp_path / "notes.partial-abcd" / "mine.txt").touch()
    (tmp_path / "new.pico.partial-00000000").mkdir()  # created a moment ago
    old = tmp_path / "gone.pico.partial-00000001"
    old.mkdir()
    os.utime(old, (1, 1))
    with scratch_folder(tmp_path) as scratch:
        (scratch / "x").write_bytes(b"1" * 5000)
        assert sweep(tmp_path) == 0
        assert scratch.is_dir()
    assert names(tmp_path) == ["new.pico.partial-00000000", "notes.partial-abcd"]


def test_removals_and_wheels_of_killed_processes_are_swept_unless_locked(tmp_path: Path) -> None:
    for name in (".a.pico.removed", "..b.hub.removed", ".c.gguf.0123abcd.0.wheel", ".d.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(b"1" * 5000)
    with (tmp_path / ".c.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert shelf_at(tmp_path).sweep() == 10_000
        left = [name for name in names(tmp_path) if not name.endswith(".lock")]
        assert left == [".c.gguf.0123abcd.0.wheel", ".d.removed"]
    assert shelf_at(tmp_path).sweep() == 5000


def test_a_power_cut_leaves_a_folder_with_the_lock_that_tells_its_writer_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its lock a folder would stay for an hour: it might have been made a moment ago."""
    synced: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(atomic_folder, "sync", lambda path: synced.append((path, os.listdir(path))))
    with atomic_folder.scratch_folder(tmp_path) as scratch:
        assert synced == [(scratch, [atomic_folder._LOCK])]
    synced.clear()
    with atomic_folder.new_folder(tmp_path / "a.pico", 0) as partial:
        assert synced == [(partial, [atomic_folder._LOCK])]


def test_begun_downloads_are_listed_and_removed(tmp_path: Path) -> None:
    (tmp_path / ".tiny.gguf.0123abcd.0.part").write_bytes(b"1" * 5000)
    (tmp_path / ".o.r.q8_0.hub").mkdir()
    (tmp_path / ".o.r.q8_0.hub" / ".0123.part").write_bytes(b"1" * 7000)
    shelf = shelf_at(tmp_path)
    found = {item.name: (item.state, item.n_bytes) for item in shelf.items()}
    assert found == {"tiny": ("begun", 5000), "o.r.q8_0": ("begun", 7000)}
    check = check_leftovers(shelf)
    assert check.status == "warn"
    assert "tiny" in check.text
    assert shelf.remove("tiny") == 5000
    assert shelf.remove("o.r.q8_0") == 7000
    assert shelf.items() == []
    assert check_leftovers(shelf).status == "ok"
