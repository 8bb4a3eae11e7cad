"""Shards pulled over real sockets: from several boards, of which some die, lie, hang or lag."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq
from mesh_nodes import Running, found, running
from transfer_boards import Board, Dying, Frames, Hanging, Lying, Slow, links
from transfer_runs import HALF, ME, QUICK, check_whole, everything, fetch

from picoedge.errors import BoardLostError, StorageError
from picoedge.mesh.transfer.donor import OFFER, Donor
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.transfer.pack_provider import PackShelf
from picoedge.mesh.transfer.puller import PullOptions, pull
from picoedge.mesh.transport.connection import InboxGuard
from picoedge.store.pack.partial import PartialPack, create_partial
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import HELD, MANIFEST, Slice, Wanted


def test_a_slice_comes_from_three_boards_at_once(shelf: Path, sound: Pack, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    boards = [Slow(shelf, [ME.public], name) for name in ("ada", "bob", "cy")]
    for board in boards:
        board.part_s = 0.005
    report = fetch(target, sound, HALF, *boards, options=PullOptions(lambda *its: seen.append(its)))
    opened = Pack.open(target)
    opened.check_held(HALF.part, embed=False)
    opened.verify()
    assert opened.missing(everything(sound))
    assert report.nbytes == sum(report.by_donor.values()) == opened.held_bytes
    assert all(report.by_donor[name] > 0 for name in ("ada", "bob", "cy"))
    assert seen == sorted(seen)
    assert seen[-1] == (report.nbytes, report.nbytes)
    assert report.wrong == ()


def test_items_that_are_here_are_not_fetched(shelf: Path, sound: Pack, target: Path) -> None:
    first = fetch(target, sound, HALF, Board(shelf, [ME.public]))
    board = Board(shelf, [ME.public])
    second = fetch(target, sound, everything(sound), board)
    assert second.already == first.nbytes
    assert not {item.name for item in sound.needed(HALF)} & set(board.asked)
    check_whole(target, sound)
    idle = Board(shelf, [ME.public])
    assert fetch(target, sound, everything(sound), idle).nbytes == 0
    assert not idle.asked


def test_a_board_that_dies_half_way(shelf: Path, sound: Pack, target: Path) -> None:
    dying = Dying(shelf, [ME.public], "dying")
    fetch(target, sound, everything(sound), dying, Board(shelf, [ME.public], "good"))
    assert dying.over.is_set()
    check_whole(target, sound)


def test_a_board_that_hangs(shelf: Path, sound: Pack, target: Path) -> None:
    hanging = Hanging(shelf, [ME.public], "hanging")
    fetch(target, sound, everything(sound), hanging, Board(shelf, [ME.public], "good"))
    check_whole(target, sound)


@pytest.mark.parametrize("begun", [False, True])
def test_a_liar_is_named_once_and_not_asked_again(
    shelf: Path, sound: Pack, target: Path, begun: bool
) -> None:
    if begun:
        create_partial(target, (shelf / "m.pico" / MANIFEST).read_bytes())
    warnings: list[str] = []
    liar, good = Lying(shelf, [ME.public], "liar"), Slow(shelf, [ME.public], "good")
    good.part_s = 0.002
    options = PullOptions(warn=warnings.append, silence_s=0.5, stall_s=1.5)
    report = fetch(target, sound, everything(sound), liar, good, options=options)
    check_whole(target, sound)
    assert report.wrong == ("liar",)
    assert len(warnings) == 1
    assert "liar" in warnings[0]
    assert report.by_donor["liar"] == 0
    assert liar.parts <= 16


def test_a_slow_board_does_not_hold_up_the_end(shelf: Path, sound: Pack, target: Path) -> None:
    slow, fast = Slow(shelf, [ME.public], "slow"), Board(shelf, [ME.public], "fast")
    slow.part_s = 0.4
    report = fetch(target, sound, everything(sound), slow, fast)
    check_whole(target, sound)
    assert report.by_donor["fast"] > report.by_donor["slow"]


def test_boards_that_hold_parts_make_a_whole(
    shelf: Path, sound: Pack, target: Path, tmp_path: Path
) -> None:
    words = sound.all_shards.head_shards
    halves = Slice(range(1), range(2), words[:2]), Slice(range(1, 2), range(0), words[2:])
    for name, part in zip("ab", halves, strict=True):
        wanted = Wanted(part, embed=name == "b")
        fetch(tmp_path / name / "m.pico", sound, wanted, Board(shelf, [ME.public]))
    boards = [Board(tmp_path / name, [ME.public], name) for name in ("a", "b")]
    fetch(target, sound, everything(sound), *boards)
    check_whole(target, sound)


def test_the_only_board_is_silent_for_a_while(shelf: Path, sound: Pack, target: Path) -> None:
    class Dozing(Board):
        def read(self, body: dict[str, Any]) -> Frames | None:
            return None if 10 <= self.parts < 13 else super().read(body)

    fetch(
        target,
        sound,
        everything(sound),
        Dozing(shelf, [ME.public]),
        options=PullOptions(silence_s=0.3),
    )
    check_whole(target, sound)


def test_a_board_that_is_itself_being_filled_gives_what_has_come(
    shelf: Path, sound: Pack, target: Path, tmp_path: Path
) -> None:
    other = tmp_path / "a" / "m.pico"
    fetch(other, sound, HALF, Board(shelf, [ME.public]))

    class Filling(Board):
        def offer(self, body: dict[str, Any]) -> Frames | None:
            if self.asked[OFFER] == 4:  # it has given all it had
                with links(ME, Board(shelf, [ME.public])) as sources:
                    pull(other, sound.identity, everything(sound), sources, QUICK)
            return super().offer(body)

    fetch(target, sound, everything(sound), Filling(tmp_path / "a", [ME.public]),
          options=PullOptions(stall_s=10))  # fmt: skip
    check_whole(target, sound)


def test_an_item_that_no_board_has_is_named_and_the_others_kept(
    shelf: Path, sound: Pack, target: Path, tmp_path: Path
) -> None:
    fetch(tmp_path / "a" / "m.pico", sound, HALF, Board(shelf, [ME.public]))
    with pytest.raises(BoardLostError, match=r"no board sends .*items are missing.*kept"):
        fetch(target, sound, everything(sound), Board(tmp_path / "a", [ME.public]))
    assert Pack.open(target).missing(HALF) == []


def test_boards_without_the_pack_say_so_at_once(sound: Pack, target: Path, tmp_path: Path) -> None:
    boards = [Board(tmp_path, [ME.public], name) for name in ("ada", "bob")]
    with pytest.raises(BoardLostError, match="ada: this pack is not on this board; bob"):
        fetch(target, sound, HALF, *boards, options=PullOptions(stall_s=60))
    assert not target.exists()
    with pytest.raises(BoardLostError, match="no boards"):
        fetch(target, sound, HALF)


def test_a_donor_that_refuses_all_peers(shelf: Path, sound: Pack, target: Path) -> None:
    with pytest.raises(BoardLostError, match="no answer"):
        fetch(target, sound, HALF, Board(shelf, []))


def test_no_room_is_told_before_a_shard_is_fetched(
    shelf: Path, sound: Pack, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults: Any = PartialPack.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "free", lambda folder: 16 << 20)
    board = Board(shelf, [ME.public])
    with links(ME, board) as sources, pytest.raises(StorageError, match="needed"):
        pull(target, sound.identity, HALF, sources, QUICK)
    assert set(board.asked) == {OFFER, MANIFEST}


def test_another_pack_of_the_name_is_in_the_way(shelf: Path, sound: Pack, target: Path) -> None:
    values = json.loads((shelf / "m.pico" / MANIFEST).read_text())
    create_partial(target, json.dumps({**values, "name": "other"}).encode())
    with pytest.raises(StorageError, match="another pack"):
        fetch(target, sound, HALF, Board(shelf, [ME.public]))


PULL = """
import sys, json
from pathlib import Path
import zmq
from picoedge.mesh.addresses import Address
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transfer.puller import pull
from picoedge.mesh.transport.connection import InboxGuard
from picoedge.store.pack import partial
from picoedge.store.shards import Wanted
from picoedge.store.shards import Slice
target, identity, port, server, public, secret = sys.argv[1:]
partial._SYNC_BYTES = 1
partial.PartialPack.__init__.__kwdefaults__["at_once"] = 1
keys, at = KeyPair(public, secret), Address("127.0.0.1", int(port))
link = DonorClient(zmq.Context(), keys, at, server, InboxGuard())
wanted = Wanted(Slice(range(2), range(2)), embed=True)
pull(Path(target), identity, wanted, [("board", link)])
"""


def test_a_pull_that_is_killed_goes_on_where_it_was(shelf: Path, sound: Pack, target: Path) -> None:
    board = Slow(shelf, [ME.public])
    board.part_s = 0.03
    with links(ME, board) as sources:
        arguments = (target, sound.identity, board.address.port, board.keys.public)
        command = [sys.executable, "-c", PULL, *map(str, arguments), ME.public, ME.secret]
        with subprocess.Popen(command) as process:
            while not (target / HELD).exists() or (target / HELD).read_bytes().count(b"\n") < 6:
                assert process.poll() is None
                board.over.wait(0.01)
            os.kill(process.pid, signal.SIGKILL)
        held = {item.name for item in Pack.open(target).items()} - {
            item.name for item in Pack.open(target).missing(everything(sound))
        }
        assert 5 <= len(held) < len(sound.items())
        board.asked.clear()
        board.part_s = 0
        report = pull(target, sound.identity, everything(sound), sources, QUICK)
    assert not held & set(board.asked)
    assert report.already == sum(item.nbytes for item in sound.items() if item.name in held)
    check_whole(target, sound)


def test_the_real_daemon_gives(shelf: Path, sound: Pack, target: Path, tmp_path: Path) -> None:
    first, second = found(tmp_path, "ada", "bob")
    ada = Running(first)
    for kind, handler in Donor(PackShelf([shelf]).find).handlers().items():
        ada.node.rpc.on(kind, handler)
    context: Any = zmq.Context()
    guard = InboxGuard()
    try:
        with running(ada):
            link = DonorClient(context, second.keys, ada.address, ada.key, guard)
            pull(target, sound.identity, everything(sound), [("ada", link)], QUICK)
    finally:
        guard.close()
        context.destroy(0)
    check_whole(target, sound)
