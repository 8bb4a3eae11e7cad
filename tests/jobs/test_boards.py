"""What a job learns of the boards: their links, and the shards on their disks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_tiny_model

from picoedge.errors import BoardLostError, MeshError, PicoedgeError
from picoedge.jobs import boards as boards_module
from picoedge.jobs.boards import MEASURING_S, BoardDirectory, locate_shards
from picoedge.jobs.measured_links import MeasuredLinks
from picoedge.jobs.stragglers import Looks
from picoedge.mesh.transfer.donor import OFFER, Donor, pack_bits
from picoedge.mesh.transfer.pack_provider import PackShelf
from picoedge.store.pack.packer import pack_source
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import HELD, HeldShards, held_shards, record_head
from picoedge.store.sources.source import open_source

NOTHING = HeldShards()


# -- shards on disk ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("holdings")
    pack_source(open_source(write_tiny_model(folder / "hf")), folder / "tiny.pico", bits=4)
    return Pack.open(folder / "tiny.pico")


class Daemon:
    """Returns the given answers, or raises them."""

    def __init__(self, answer: dict[str, Any] | MeshError | Donor) -> None:
        self._answer = answer

    def ask(self, kind: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert kind == OFFER
        if isinstance(self._answer, Donor):
            try:
                return self._answer.offer(body)
            except PicoedgeError as error:
                raise MeshError(error.message) from error
        if isinstance(self._answer, MeshError):
            raise self._answer
        return self._answer


def told(packed: Pack, *answers: dict[str, Any] | MeshError | Donor) -> list[HeldShards]:
    """What the hub makes of the answers of its boards."""
    handles = [SimpleNamespace(client=Daemon(each)) for each in ({}, *answers)]
    directory = SimpleNamespace(own=handles[0], handles=dict(enumerate(handles)))
    held = locate_shards(cast(BoardDirectory, directory), packed)
    assert list(held) == list(range(1, len(answers) + 1))
    return list(held.values())


def everything(packed: Pack) -> HeldShards:
    shards = packed.all_shards
    return HeldShards(*map(frozenset, (shards.attention, shards.ffn, shards.head_shards)))


def test_a_board_has_all_a_part_or_nothing(tiny: Pack, tmp_path: Path) -> None:
    whole, part, nothing = (tmp_path / name for name in ("whole", "part", "nothing"))
    for shelf in (whole, part):
        shelf.mkdir()
        (shelf / "a.pico").mkdir()
        for file in tiny.path.iterdir():
            (shelf / "a.pico" / file.name).write_bytes(file.read_bytes())
    names = [item.name for item in tiny.items()]
    last = max(everything(tiny).attention)
    recorded = [name for name in names if not name.endswith(f"attention.{last:03d}")]
    recorded.remove("layer-000/ffn.000")  # of one layer only
    lines = "".join(f"{name}\n" for name in recorded).encode()
    (part / "a.pico" / HELD).write_bytes(record_head(tiny.identity) + lines)
    found = told(tiny, *(Donor(PackShelf([shelf]).find) for shelf in (whole, part, nothing)))
    has = everything(tiny)
    assert found == [has, HeldShards(has.attention - {last}, has.ffn - {0}, has.head), NOTHING]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"name": "a", "manifest_bytes": 5, "items": 3, "held": None},
        {"name": "a", "manifest_bytes": 5, "items": "all", "held": None},
        {"name": "a", "manifest_bytes": 5, "items": 1 << 19, "held": "////"},
        {"name": "a", "manifest_bytes": -5, "items": 3, "held": "?"},
        MeshError("this pack is not on this board"),
        BoardLostError("gone", board="b"),
    ],
)
def test_a_board_whose_answer_makes_no_sense_has_no_shards(
    tiny: Pack, answer: dict[str, Any] | MeshError
) -> None:
    assert told(tiny, answer) == [NOTHING]


def test_bits_of_another_length_are_nothing(tiny: Pack) -> None:
    count = len(tiny.items())
    right = {"name": "a", "manifest_bytes": 5, "items": count}
    answers = [{**right, "held": pack_bits([True] * n)} for n in (count, count + 8, 1)]
    assert told(tiny, *answers) == [everything(tiny), NOTHING, NOTHING]


@given(
    st.sets(st.tuples(st.integers(0, 2), st.sampled_from(["attention", "ffn"]), st.integers(0, 3)))
)
def test_a_shard_counts_where_it_is_there_in_every_layer(
    missing: set[tuple[int, str, int]],
) -> None:
    names = {
        (layer, kind, i): f"layer-{layer:03d}/{kind}.{i:03d}"
        for layer in range(3)
        for kind in ("attention", "ffn")
        for i in range(4)
    }
    beside = ["layer-000/input_norm", "head/head.000", "embed/embed.000", "tokenizer.json"]
    words = {"head/head.001", "head/head.003"}
    held = {name for place, name in names.items() if place not in missing}
    found = held_shards([*names.values(), *beside, *words], held | words)
    assert found.head == {1, 3}
    for kind, shards in (("attention", found.attention), ("ffn", found.ffn)):
        assert shards == set(range(4)) - {i for _, of, i in missing if of == kind}


# -- users of a board ----------------------------------------------------------------------------

OWN, OTHER, SESSION = "h" * 40, "b" * 40, "0123456789abcdef"
TAKEN = {"does": "computing", "holder": "desk"}


@pytest.mark.parametrize(
    ("report", "is_taken"),
    [
        ({}, False),
        ({"does": "free"}, False),
        ({"does": "ending"}, False),
        ({**TAKEN, "holder_key": OWN, "holder_session": SESSION}, False),
        ({**TAKEN, "holder_key": OWN, "holder_session": "f" * 16}, True),  # another of this board
        ({**TAKEN, "holder_key": OWN}, True),  # one of the previous version
        ({**TAKEN, "holder_key": OTHER, "holder_session": SESSION}, True),
        ({**TAKEN, "holder_key": OTHER}, True),  # a board that has taken this one's name
        (TAKEN, False),  # as the previous version tells it
        ({**TAKEN, "holder": "pi2"}, True),
    ],
)
def test_a_board_is_taken_by_other_sessions(report: dict[str, Any], is_taken: bool) -> None:
    directory = BoardDirectory.__new__(BoardDirectory)
    directory.session = SESSION
    directory.identity = cast(Any, SimpleNamespace(keys=SimpleNamespace(public=OWN)))
    assert directory._is_taken({"report": report}, "desk") == is_taken


def test_looks_at_a_board_become_rare() -> None:
    looks, now_s, waits = Looks(), 100.0, []
    assert looks.is_due("a", now_s)
    for _ in range(6):
        looks.looked("a", now_s)
        assert not looks.is_due("a", now_s)
        before_s = now_s
        while not looks.is_due("a", now_s):
            now_s += 1.0
        waits.append(now_s - before_s)
    assert waits == [5, 10, 20, 40, 40, 40]
    assert looks.is_due("b", now_s)


# -- boards that are asked what they can do ------------------------------------------------------

FACTS = {
    "name": "raspberrypi", "cores": 4, "compute_bytes_per_s": 1e9, "disk_bytes_per_s": 1e8,
    "fixed_bytes": 0,
}  # fmt: skip
OWN_KEY = "h" * 40


class Asked:
    """The daemons of a desk and of two boards; time is the test's, and a question takes 10 ms."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.lines = 0.0, list[str]()
        self.measuring_until_s: dict[str, float] = {}  # by the first letter of a board's key
        self.timeouts: list[float] = []
        asked = self

        class Board:
            def __init__(self, address: Any, key: str, name: str) -> None:
                self.address, self.key, self.name = address, key, name

            def ask(self, kind: str, *its: Any, timeout_s: float, **more: Any) -> dict[str, Any]:
                asked.now_s += 0.01
                if kind == "mesh-state":
                    there = (("desk", "h"), ("pi3", "b"), ("pi2", "a"))
                    return {"boards": [asked.told_of(*each) for each in there]}
                asked.timeouts.append(timeout_s)
                if asked.now_s < asked.measuring_until_s.get(self.key[0], 0.0):
                    raise MeshError(f"board {self.name}: this board is still being measured")
                facts = {**FACTS, "key": self.key, "of later": {}}
                return {"facts": facts, "memory_bytes": 1 << 30}

            def ask_raw(self, *its: Any) -> None:
                pass

            def close(self) -> None:
                pass

        self.directory = directory = BoardDirectory.__new__(BoardDirectory)
        directory.__dict__.update(
            handles={}, _fixed_bytes=0, _unlinked={}, _left_out=set(), _tell=self.lines.append,
            _looks=Looks(), _measuring_s=MEASURING_S, session="0" * 16,
        )  # fmt: skip
        directory._links = MeasuredLinks(folder)
        keys = SimpleNamespace(public=OWN_KEY)
        directory.identity = cast(Any, SimpleNamespace(keys=keys))
        own = Board("127.0.0.1:1", OWN_KEY, "raspberrypi")
        monkeypatch.setattr(directory, "_client", Board)
        monkeypatch.setattr(directory, "_own", lambda: own)
        clock = SimpleNamespace(monotonic=lambda: self.now_s, sleep=self.sleep)
        monkeypatch.setattr(boards_module, "time", clock)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def told_of(self, name: str, letter: str) -> dict[str, Any]:
        there = {"condition": "alive", "addresses": ["10.0.0.1:1"]}
        return {"name": name, "key": letter * 40, **there}

    def answered(self) -> list[str]:
        return [handle.name for handle in self.directory.handles.values()]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(tmp_path, monkeypatch)


def test_a_board_has_the_rosters_name_whatever_it_calls_itself(asked: Asked) -> None:
    """Two boards that call themselves raspberrypi, let in as pi2 and pi3, of a later version."""
    cluster = asked.directory.refresh()
    assert [board.name for board in cluster.boards] == ["desk", "pi2", "pi3"]
    assert asked.answered() == ["desk", "pi2", "pi3"]
    handles = asked.directory.handles.values()
    assert [each.client.name for each in handles] == ["desk", "pi2", "pi3"]


def test_boards_that_measure_themselves_are_waited_for_as_a_session_begins(asked: Asked) -> None:
    asked.measuring_until_s = {"h": 5.0, "a": 20.0, "b": 8.0}
    asked.directory.refresh()
    assert asked.answered() == ["desk", "pi2", "pi3"]
    assert 20.0 <= asked.now_s < 21.0
    assert asked.lines[0] == "waiting up to 60 s: board desk: this board is still being measured"
    assert len(asked.lines) == 2


def test_all_boards_together_hold_a_session_up_for_a_bounded_time(asked: Asked) -> None:
    asked.measuring_until_s = {"a": 1e9, "b": 1e9}
    asked.directory.refresh()
    assert asked.now_s < MEASURING_S + 2.0
    assert asked.answered() == ["desk"]
    assert "pi3 is left out: board pi3: this board is still being measured" in asked.lines


def test_neither_a_recovery_nor_a_look_waits_for_a_board_that_measures_itself(
    asked: Asked,
) -> None:
    asked.directory.refresh()
    asked.measuring_until_s = {"a": 1e9}
    began_s = asked.now_s
    asked.directory.refresh()
    assert asked.answered() == ["desk", "pi3"]
    reached, lost = asked.directory.look(frozenset({"b" * 40}))
    assert (reached, lost) == (set(), {"a" * 40})
    assert asked.now_s - began_s < 1.0
    assert asked.timeouts[-1] == boards_module._LOOK_S  # as any other question of a look
