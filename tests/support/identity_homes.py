"""Clusters of one board in a folder, and boards that join them."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path
from typing import Any

from picoedge.mesh.identity.admission import Invites, accept, admit, joining_keys, parse_invite
from picoedge.mesh.identity.identity import Identity, load_signing_key
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.identity.roster import RosterFile

UNIX = 1_800_000_000
NOW = Moment(UNIX, 1000.0, "a boot")
ADDRESS = "192.0.2.7:7433"


def issue(home: Path, ttl_s: float = 60) -> str:
    return Invites(home).issue(ADDRESS, RosterFile(home).roster.cluster.key, ttl_s, NOW)


def join(home: Path, folder: Path, name: str = "pi1") -> Identity:
    """What two daemons do, without a network between them."""
    invitation, keys = parse_invite(issue(home)), joining_keys(folder)
    signing, one_time = load_signing_key(home), invitation.keys.public
    answer = admit(RosterFile(home), signing, one_time, keys.public, name, NOW)
    return accept(folder, invitation, json.loads(json.dumps(answer.to_json())), keys)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def run_at_once(target: Any, *arguments: tuple[Any, ...]) -> None:
    """Several processes; each must succeed."""
    spawning = multiprocessing.get_context("spawn")
    running = [spawning.Process(target=target, args=each) for each in arguments]
    for process in running:
        process.start()
    for process in running:
        process.join(30)
        assert process.exitcode == 0
