"""The roster on disk: what several processes write at once, and what a killed one leaves."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from identity_homes import join, run_at_once

from picoedge.errors import AccessError, ProtocolError, StorageError
from picoedge.mesh.identity.admission import found_cluster
from picoedge.mesh.identity.identity import KeyPair, load_signing_key
from picoedge.mesh.identity.roster import RosterFile


def test_a_daemon_notices_what_the_command_line_wrote(home: Path, tmp_path: Path) -> None:
    daemon = RosterFile(home)
    assert not daemon.reload_if_changed()
    joined = join(home, tmp_path / "pi1")
    assert daemon.reload_if_changed()
    assert daemon.roster.is_allowed(joined.keys.public)
    signing = load_signing_key(home)
    RosterFile(home).update(lambda roster: roster.with_revoke(signing, joined.keys.public))
    assert daemon.reload_if_changed()
    assert not daemon.roster.is_allowed(joined.keys.public)
    assert not daemon.reload_if_changed()


def test_an_older_file_takes_no_revocation_back(home: Path, tmp_path: Path) -> None:
    joined, signing = join(home, tmp_path / "pi1"), load_signing_key(home)
    older, daemon = (home / "roster.json").read_bytes(), RosterFile(home)
    daemon.update(lambda roster: roster.with_revoke(signing, joined.keys.public))
    (home / "roster.json").write_bytes(older)
    assert not daemon.reload_if_changed()
    assert not daemon.roster.is_allowed(joined.keys.public)
    daemon.update(lambda roster: roster)
    assert RosterFile(home).roster == daemon.roster


def test_a_bad_file_is_told_once_and_what_was_known_stays(home: Path) -> None:
    daemon = RosterFile(home)
    known = daemon.roster
    (home / "roster.json").write_text("{")
    with pytest.raises(AccessError, match=r"roster\.json: damaged"):
        daemon.reload_if_changed()
    assert not daemon.reload_if_changed()
    assert daemon.roster == known


def test_gossip_is_merged_saved_and_told_once(home: Path, tmp_path: Path) -> None:
    join(home, tmp_path / "pi1")
    here, there = RosterFile(home), RosterFile(tmp_path / "pi1")
    assert not there.take(there.read(here.roster.to_json()))
    signing, newcomer = load_signing_key(home), KeyPair.new().public
    here.update(lambda roster: roster.with_allow(signing, newcomer, "pi2"))
    assert there.take(there.read(here.roster.to_json()))
    assert not there.take(there.read(here.roster.to_json()))
    assert RosterFile(tmp_path / "pi1").roster == here.roster
    found_cluster(tmp_path / "other", "home", "pi0")
    before = (tmp_path / "pi1" / "roster.json").read_bytes()
    for hostile in (RosterFile(tmp_path / "other").roster.to_json(), {}, None):
        with pytest.raises((AccessError, ProtocolError)):
            there.read(hostile)
    assert (tmp_path / "pi1" / "roster.json").read_bytes() == before


def _allow_many(home: Path, start: int, count: int) -> None:
    file, signing = RosterFile(home), load_signing_key(home)
    for number in range(start, start + count):
        public, name = KeyPair.new().public, f"b{number}"
        file.update(lambda roster, p=public, n=name: roster.with_allow(signing, p, n))  # type: ignore[misc]


def test_processes_that_write_at_once_lose_nothing(home: Path) -> None:
    run_at_once(_allow_many, (home, 0, 8), (home, 8, 8))
    members = RosterFile(home).roster.members
    assert set(members.values()) == {"pi0", *(f"b{number}" for number in range(16))}


def test_a_write_that_fails_leaves_the_old_roster(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, file = (home / "roster.json").read_bytes(), RosterFile(home)
    signing = load_signing_key(home)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        file.update(lambda roster: roster.with_allow(signing, KeyPair.new().public, "pi9"))
    assert (home / "roster.json").read_bytes() == before
    assert sorted(path.name for path in home.iterdir()) == ["board.json", "lock", "roster.json"]
    assert len(file.roster.members) == 1


def test_a_killed_writer_s_partial_file_is_replaced(home: Path) -> None:
    (home / ".roster.json.new").write_text('{"clus')
    _allow_many(home, 0, 1)
    assert len(RosterFile(home).roster.members) == 2
    assert not (home / ".roster.json.new").exists()


def _allow_and_tell(home: Path, told: Any) -> None:
    for number in range(10_000):
        _allow_many(home, number, 1)
        told.send(f"b{number}")


def test_a_writer_that_is_killed_leaves_a_whole_roster(home: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    hearing, telling = spawning.Pipe(duplex=False)
    writer = spawning.Process(target=_allow_and_tell, args=(home, telling))
    writer.start()
    said = {hearing.recv() for _ in range(5)}
    writer.kill()
    writer.join(30)
    assert said <= set(RosterFile(home).roster.members.values())
    _allow_many(home, 20_000, 1)
    hearing.close()
    telling.close()


def test_a_lock_that_stays_taken_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picoedge.mesh.cluster_folder.LOCK_TIMEOUT_S", 0.05)
    with (home / "lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="lock: held"):
            RosterFile(home).update(lambda roster: roster)
