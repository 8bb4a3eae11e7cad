"""Shards pulled over real sockets: from several boards, of which some die, lie, hang or lag."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from mesh_nodes import Running, found, running
from store_models import write_gguf
from transfer_boards import (
    Board,
    Dying,
    Frames,
    Hanging,
    Lying,
    Scripted,
    Slow,
    links,
)

from picoedge.errors import BoardLostError, ModelError, ProtocolError, StorageError
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.transfer.donor import OFFER, PART_BYTES, READ, Donor, pack_bits, unpack_bits
from picoedge.mesh.transfer.donor_client import DonorClient
from picoedge.mesh.transfer.pack_provider import PackShelf
from picoedge.mesh.transfer.puller import (
    Puller,
    PullOptions,
    PullReport,
    PullTarget,
    pull,
)
from picoedge.mesh.transport.frames import Header, Kind
from picoedge.mesh.transport.frames import pack as pack_header
from picoedge.mesh.transport.messages import REPLY, control
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.partial import PartialPack, create_partial
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import HELD, MANIFEST, Slice, Wanted
from picoedge.store.sources.source import ModelSource, open_source

ME = KeyPair.new()
HALF = Wanted(Slice(range(1), range(1)))
QUICK = PullOptions(silence_s=0.5, stall_s=1.5)


def write_text(source: ModelSource, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    write_gguf(folder / "m.gguf", "Q8_0", tied=False)
    pack_source(open_source(folder / "m.gguf"), folder / "m.pico", write_text=write_text)
    return folder


@pytest.fixture(scope="module")
def sound(shelf: Path) -> Pack:
    return Pack.open(shelf / "m.pico")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "mine" / "m.pico"


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


def test_what_is_here_is_not_fetched(shelf: Path, sound: Pack, target: Path) -> None:
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


def test_what_no_board_has_is_told_and_the_rest_kept(
    shelf: Path, sound: Pack, target: Path, tmp_path: Path
) -> None:
    fetch(tmp_path / "a" / "m.pico", sound, HALF, Board(shelf, [ME.public]))
    with pytest.raises(BoardLostError, match=r"no board sends .*items lack.*kept"):
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
from picoedge.store.pack import partial
from picoedge.store.shards import Wanted
from picoedge.store.shards import Slice
target, identity, port, server, public, secret = sys.argv[1:]
partial._SYNC_BYTES = 1
partial.PartialPack.__init__.__kwdefaults__["at_once"] = 1
link = DonorClient(zmq.Context(), KeyPair(public, secret), Address("127.0.0.1", int(port)), server)
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
    try:
        with running(ada):
            link = DonorClient(context, second.keys, ada.address, ada.key)
            pull(target, sound.identity, everything(sound), [("ada", link)], QUICK)
    finally:
        context.destroy(0)
    check_whole(target, sound)


# -- hostile donors --------------------------------------------------------------------------------


def _offer(**fields: Any) -> Callable[[Board, dict[str, Any]], Frames | None]:
    sound = {"name": "m", "manifest_bytes": 1000, "items": 3, "held": None}
    return lambda board, body: control(REPLY, {**sound, **fields, "id": body["id"]})


def _part(
    nbytes: int | None = None, data: bytes | None = None, extra: int = 0
) -> Callable[[Board, dict[str, Any]], Frames | None]:
    def answer(board: Board, body: dict[str, Any]) -> Frames:
        size = body["bytes"] if nbytes is None else nbytes
        header = Header(Kind.SHARD, sequence=body["id"], shape=(size,), extra=extra)
        return [pack_header(header), bytes(size) if data is None else data]

    return answer


HOSTILE: dict[str, tuple[str, Callable[[Board, dict[str, Any]], Frames | None]]] = {
    "no manifest": (OFFER, _offer(manifest_bytes=0)),
    "giant manifest": (OFFER, _offer(manifest_bytes=1 << 60)),
    "negative": (OFFER, _offer(manifest_bytes=-5)),
    "float": (OFFER, _offer(manifest_bytes=1.5)),
    "bool": (OFFER, _offer(items=True)),
    "many items": (OFFER, _offer(items=1 << 50)),
    "held of another type": (OFFER, _offer(held=[1, 2])),
    "held is no base64": (OFFER, _offer(held="??", manifest_bytes=10)),
    "name of another type": (OFFER, _offer(name={"a": 1})),
    "long name": (OFFER, _offer(name="a" * 5000)),
    "not a message": (OFFER, lambda board, body: [b"hello"]),
    "many frames": (OFFER, lambda board, body: [b"x"] * 50),
    "garbage": (OFFER, lambda board, body: [b"\xff" * 30, b"\xff" * 100]),
    "too short": (READ, _part(nbytes=1)),
    "too long": (READ, _part(nbytes=PART_BYTES + 1)),
    "shape lies": (READ, _part(data=b"")),
    "another place": (READ, _part(extra=77)),
    "garbage parts": (READ, lambda board, body: [b"\0" * 30, b""]),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("begun", [False, True])
def test_a_hostile_donor_is_dropped_and_the_good_one_asked(
    shelf: Path, sound: Pack, target: Path, name: str, begun: bool
) -> None:
    if begun:
        create_partial(target, (shelf / "m.pico" / MANIFEST).read_bytes())
    kind, answer = HOSTILE[name]
    bad = Scripted(shelf, [ME.public], "bad")
    bad.script = {kind: answer}
    report = fetch(target, sound, everything(sound), bad, Board(shelf, [ME.public], "good"))
    assert report.by_donor["bad"] == 0
    check_whole(target, sound)


def test_numbers_that_were_not_asked_for_are_ignored(
    shelf: Path, sound: Pack, target: Path
) -> None:
    class Chatty(Board):
        def read(self, body: dict[str, Any]) -> Frames | None:
            return (
                super().read({**body, "id": body["id"] + 7})
                if self.parts % 3 == 0
                else (super().read(body))
            )

    fetch(target, sound, everything(sound), Chatty(shelf, [ME.public], "chatty"),
          Board(shelf, [ME.public], "good"))  # fmt: skip
    check_whole(target, sound)


# -- hostile pullers -------------------------------------------------------------------------------


@pytest.fixture
def donor(shelf: Path) -> Donor:
    return Donor(PackShelf([shelf]).find)


def test_a_donor_reads_what_it_offers(donor: Donor, sound: Pack, shelf: Path) -> None:
    offer = donor.offer({"pack": sound.identity})
    manifest = (shelf / "m.pico" / MANIFEST).read_bytes()
    assert offer == {"name": "m", "manifest_bytes": len(manifest), "items": len(sound.items()),
                     "held": None}  # fmt: skip
    item = sound.items()[3]
    ask = {"id": 5, "pack": sound.identity, "item": item.name, "offset": 2, "bytes": 7}
    header, data = donor.read(ask)
    start = item.offset + 2
    assert data == (shelf / "m.pico" / item.file).read_bytes()[start : start + 7]
    assert (header.kind, header.sequence, header.shape, header.extra) == (Kind.SHARD, 5, (7,), 2)


BAD_ASKS: dict[str, dict[str, Any]] = {
    "pack of another type": {"pack": 5},
    "pack is a path": {"pack": "../../etc"},
    "pack missing": {"pack": None},
    "path": {"item": "../../../../etc/passwd"},
    "absolute": {"item": "/etc/passwd"},
    "record": {"item": HELD},
    "file": {"item": "head.safetensors"},
    "item of another type": {"item": ["head/final_norm"]},
    "long item": {"item": "a" * 10_000},
    "offset": {"offset": 1 << 40},
    "negative offset": {"offset": -1},
    "float": {"offset": 0.5},
    "bool": {"bytes": True},
    "bytes": {"bytes": 1 << 30},
    "behind the end": {"offset": 1020, "bytes": 5},
    "id": {"id": 1 << 40},
    "id of another type": {"id": "1"},
}


@pytest.mark.parametrize("name", BAD_ASKS)
def test_a_donor_gives_only_parts_of_items(donor: Donor, sound: Pack, name: str) -> None:
    ask = {"id": 1, "pack": sound.identity, "item": "head/final_norm", "offset": 0, "bytes": 4}
    donor.read(ask)
    with pytest.raises(ProtocolError):
        donor.read({**ask, **BAD_ASKS[name]})


def test_a_donor_follows_no_links(shelf: Path, sound: Pack, target: Path) -> None:
    create_partial(target, (shelf / "m.pico" / MANIFEST).read_bytes())
    (target / HELD).unlink()
    (target / "head.safetensors").unlink()
    (target / "head.safetensors").symlink_to("/etc/passwd")
    ask = {"id": 1, "pack": sound.identity, "item": "head/final_norm", "offset": 0, "bytes": 4}
    with pytest.raises(StorageError):
        Donor(PackShelf([target.parent]).find).read(ask)


def test_a_donor_sees_what_comes_and_goes(shelf: Path, sound: Pack, target: Path) -> None:
    donor, ask = Donor(PackShelf([target.parent]).find), {"pack": sound.identity}
    with pytest.raises(ModelError, match="not on this board"):
        donor.offer(ask)
    create_partial(target, (shelf / "m.pico" / MANIFEST).read_bytes())
    assert not any(unpack_bits(donor.offer(ask)["held"], len(sound.items())))
    item = sound.items()[4]
    part = {**ask, "id": 1, "item": item.name, "offset": 0, "bytes": 8}
    with pytest.raises(ModelError, match="not on this board"):
        donor.read(part)
    with PartialPack(target) as filled:
        data = (shelf / "m.pico" / item.file).read_bytes()
        filled.write(item, data[item.offset : item.offset + item.nbytes])
    bits = unpack_bits(donor.offer(ask)["held"], len(sound.items()))
    assert [i for i, bit in enumerate(bits) if bit] == [4]
    assert donor.read(part)[1] == data[item.offset : item.offset + 8]
    (target / MANIFEST).rename(target / "gone")
    with pytest.raises(ModelError, match="not on this board"):
        donor.read(part)


def test_a_damaged_shelf_is_passed_over(shelf: Path, sound: Pack, tmp_path: Path) -> None:
    for name, data in (("a", b""), ("b", b"{"), ("c", b"\0" * 100)):
        (tmp_path / f"{name}.pico").mkdir()
        (tmp_path / f"{name}.pico" / MANIFEST).write_bytes(data)
    (tmp_path / "d.pico").mkdir()
    (tmp_path / "e.pico").write_bytes(b"")
    (tmp_path / "z.pico").symlink_to(shelf / "m.pico")
    assert (
        Donor(PackShelf([tmp_path / "none", tmp_path]).find).offer({"pack": sound.identity})["name"]
        == "z"
    )


def test_bits_are_read_as_they_were_written() -> None:
    for count in (1, 7, 8, 9, 1000):
        bits = [i % 3 == 1 for i in range(count)]
        assert unpack_bits(pack_bits(bits), count) == bits
        for text in ("", "!", pack_bits(bits) + "AAAA", base64.b64encode(bytes(count)).decode()):
            if len(base64.b64decode(text if text != "!" else "")) != -(-count // 8):
                with pytest.raises(ProtocolError):
                    unpack_bits(text, count)


# -- what is no pack -------------------------------------------------------------------------------


class LiveState:
    """Items in memory that change under a version, as of a training that runs."""

    identity, name, held = "ab" * 32, "state", None

    def __init__(self) -> None:
        self.items = {f"part-{i}": bytes([i]) * (PART_BYTES + i) for i in range(5)}
        self.names = list(self.items)
        self.version = 7

    def nbytes(self, name: str) -> int | None:
        return {MANIFEST: 10, **{name: len(data) for name, data in self.items.items()}}.get(name)

    def read(self, name: str, offset: int, nbytes: int) -> tuple[bytes, int]:
        return self.items[name][offset : offset + nbytes], self.version


def test_a_live_state_is_given_and_pulled_like_a_pack(tmp_path: Path) -> None:
    state, pulled = LiveState(), dict[str, bytes]()

    def accept(name: str, data: memoryview) -> bool:
        pulled[name] = bytes(data)
        return True

    sizes = {name: len(data) for name, data in state.items.items()}
    target = PullTarget(sizes, lambda offered: offered.names(state.names), accept)
    boards = [Board(tmp_path, [ME.public], name) for name in ("ada", "bob")]
    for board in boards:
        board.donor = Donor(lambda identity: state)
    with links(ME, *boards) as donors:
        puller = Puller(state.identity, donors, QUICK)
        puller.run(target)
    assert pulled == state.items
    assert sum(puller.by_donor.values()) == sum(sizes.values())


def test_a_part_says_its_version() -> None:
    state = LiveState()
    body = {"id": 1, "pack": state.identity, "item": "part-1", "offset": 3, "bytes": 4}
    header, data = Donor(lambda identity: state).read(body)
    assert (header.epoch, header.extra, data) == (7, 3, b"\1\1\1\1")
