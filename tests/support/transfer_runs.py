"""Pulls over real sockets, and what they must leave."""

from __future__ import annotations

from pathlib import Path

from transfer_boards import Board, links

from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transfer.puller import PullOptions, PullReport, pull
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import Slice, Wanted

ME = KeyPair.new()
HALF = Wanted(Slice(range(1), range(1)))
QUICK = PullOptions(silence_s=0.5, stall_s=1.5)


def everything(sound: Pack) -> Wanted:
    return Wanted(sound.all_shards, embed=True)


def fetch(
    target: Path, sound: Pack, wanted: Wanted, *boards: Board, options: PullOptions = QUICK
) -> PullReport:
    with links(ME, *boards) as sources:
        return pull(target, sound.identity, wanted, sources, options)


def check_whole(target: Path, sound: Pack) -> None:
    opened = Pack.open(target)
    assert opened.is_whole
    opened.verify()
    for path in sound.path.iterdir():
        assert path.read_bytes() == (target / path.name).read_bytes()
