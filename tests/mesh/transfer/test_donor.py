"""Donors and pullers over real sockets: neither believes the other."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transfer_boards import Board, Frames, Scripted, links
from transfer_runs import ME, QUICK, check_whole, everything, fetch

from picoedge.errors import ModelError, ProtocolError, StorageError
from picoedge.mesh.transfer.donor import OFFER, PART_BYTES, READ, Donor, pack_bits, unpack_bits
from picoedge.mesh.transfer.donor_client import ItemRefused
from picoedge.mesh.transfer.pack_provider import PackShelf
from picoedge.mesh.transfer.puller import Puller, PullTarget
from picoedge.mesh.transport.frames import Header, Kind
from picoedge.mesh.transport.frames import pack as pack_header
from picoedge.mesh.transport.messages import REPLY, control
from picoedge.store.pack.partial import PartialPack, create_partial
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import HELD, MANIFEST


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


def test_a_donor_follows_no_links(shelf: Path, sound: Pack, target: Path, tmp_path: Path) -> None:
    create_partial(target, (shelf / "m.pico" / MANIFEST).read_bytes())
    (target / HELD).unlink()
    (target / "head.safetensors").unlink()
    head = (shelf / "m.pico" / "head.safetensors").read_bytes()
    (tmp_path / "elsewhere").write_bytes(head)
    (target / "head.safetensors").symlink_to(tmp_path / "elsewhere")
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


def test_parts_of_two_versions_make_no_item(tmp_path: Path) -> None:
    class Changing(LiveState):
        def read(self, name: str, offset: int, nbytes: int) -> tuple[bytes, int]:
            self.version += 1
            return super().read(name, offset, nbytes)

    state, board = Changing(), Board(tmp_path, [ME.public])
    board.donor = Donor(lambda identity: state)
    with links(ME, board) as [(_, donor)]:
        donor.ask_offer(state.identity, 0.0)
        donor.add("part-1", PART_BYTES + 1)
        answers: list[Any] = []
        while not any(isinstance(answer, ItemRefused) for answer in answers):
            assert donor.socket.poll(5000)
            answers += donor.receive()
        assert answers[-1] == ItemRefused("part-1", "it changed while it was sent")
        assert donor.is_idle
        donor.add("part-0", PART_BYTES)
        while not getattr(answers[-1], "whole", None):
            assert donor.socket.poll(5000)
            answers += donor.receive()
        assert answers[-1].version == state.version
