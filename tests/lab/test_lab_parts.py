"""The lab's parts: the switch's decisions, controllers' files, records, and refusals."""

from __future__ import annotations

import os
import shutil
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.lab import Lab, LabError, LinkShape, leftovers, namespaces
from hw.lab.__main__ import main
from hw.lab.cgroups import Group, cpu_quota, loosen
from hw.lab.fabric import Fabric, mac
from hw.lab.hierarchies import Hierarchy, hierarchy
from hw.lab.leftovers import Record, sweep
from hw.lab.links import parse_part, parse_rate, parse_seconds

ALL = b"\xff" * 6
NEVER = 1e9


def frame(to: bytes, n_bytes: int = 100, mark: int = 0) -> bytes:
    return (to + bytes(8) + mark.to_bytes(4, "big")).ljust(n_bytes, b".")


def out(fabric: Fabric, until: float = NEVER) -> list[tuple[float, int, bytes]]:
    """(when, port, frame) of all that comes out."""
    came = []
    while (due := fabric.next_due()) is not None and due <= until:
        came += [(due, port, data) for port, data in fabric.leaving(due)]
    return came


def fabric_of(ports: int, shape: LinkShape, chance: float = 0.5) -> Fabric:
    return Fabric(ports, shape, lambda: chance)


# -- the switch's decisions ------------------------------------------------------------------------


def test_a_frame_goes_to_its_address_alone() -> None:
    fabric = fabric_of(3, LinkShape(delay_s=0.5))
    fabric.arrive(1.0, 0, frame(mac(2)))
    assert [(when, port) for when, port, _ in out(fabric)] == [(1.5, 2)]
    for nowhere in (mac(0), mac(7), b"", b"\x02"):
        fabric.arrive(2.0, 0, frame(nowhere) if nowhere else b"\x02")
    assert out(fabric) == []
    fabric.arrive(3.0, 1, frame(ALL))
    assert [(when, port) for when, port, _ in out(fabric)] == [(3.5, 0), (3.5, 2)]


def test_nothing_comes_out_early() -> None:
    fabric = fabric_of(2, LinkShape(delay_s=0.5))
    fabric.arrive(1.0, 0, frame(mac(1)))
    assert list(fabric.leaving(1.49)) == []
    assert len(list(fabric.leaving(1.5))) == 1
    assert fabric.next_due() is None


def test_a_rate_is_kept_frame_after_frame() -> None:
    fabric = fabric_of(3, LinkShape(delay_s=1.0, rate_bytes_per_s=1000))
    for _ in range(3):
        fabric.arrive(0.0, 0, frame(mac(1), 500))
    fabric.arrive(0.0, 0, frame(mac(2), 500))  # another link: it does not wait
    assert [(when, port) for when, port, _ in out(fabric)] == [
        (1.5, 1),
        (1.5, 2),
        (2.0, 1),
        (2.5, 1),
    ]


def test_links_share_their_boards_ports() -> None:
    fabric = fabric_of(4, LinkShape())
    fabric.uplinks[0].rate = fabric.downlinks[3].rate = 1000
    for to in (1, 2):
        fabric.arrive(0.0, 0, frame(mac(to), 500))
    assert [when for when, _, _ in out(fabric)] == [0.5, 1.0]
    for source in (1, 2):
        fabric.arrive(10.0, source, frame(mac(3), 500))
    assert [when for when, _, _ in out(fabric)] == [10.5, 11.0]


def test_equal_rates_in_a_row_cost_once() -> None:
    """As small packets would, a large frame leaves one stage while it enters the next."""
    fabric = fabric_of(2, LinkShape(rate_bytes_per_s=1000))
    fabric.uplinks[0].rate = fabric.downlinks[1].rate = 1000
    fabric.arrive(0.0, 0, frame(mac(1), 500))
    assert [when for when, _, _ in out(fabric)] == [0.5]


def test_a_full_queue_drops() -> None:
    fabric = fabric_of(2, LinkShape(rate_bytes_per_s=1e6, queue_s=1.0))
    for _ in range(2000):
        fabric.arrive(0.0, 0, frame(mac(1), 1000))
    came = out(fabric)
    assert came[-1][0] == pytest.approx(1.0, abs=0.002)
    assert fabric.counts["full"] == 2000 - len(came)


def test_a_cut_loses_also_what_is_on_its_way() -> None:
    fabric = fabric_of(2, LinkShape(delay_s=1.0))
    fabric.arrive(0.0, 0, frame(mac(1)))
    fabric.way(0, 1).is_cut = True
    fabric.arrive(0.5, 0, frame(mac(1)))
    fabric.arrive(0.5, 1, frame(mac(0)))
    assert [port for _, port, _ in out(fabric)] == [0]
    assert fabric.counts["cut"] == 2
    fabric.way(0, 1).is_cut = False
    fabric.arrive(3.0, 0, frame(mac(1)))
    assert [port for _, port, _ in out(fabric)] == [1]


def test_loss_is_by_chance() -> None:
    for chance, came in ((0.009, 0), (0.011, 1)):
        fabric = fabric_of(2, LinkShape(loss=0.01), chance)
        fabric.arrive(0.0, 0, frame(mac(1)))
        assert (len(out(fabric)), fabric.counts["lost"]) == (came, 1 - came)


FRAMES = st.lists(
    st.tuples(st.floats(0, 0.01), st.integers(0, 2), st.integers(0, 2), st.integers(60, 65000)),
    max_size=40,
)
DURATIONS = st.floats(0, 0.1)
RATES = st.none() | st.floats(1e5, 1e9)


@given(FRAMES, DURATIONS, DURATIONS, RATES, RATES, st.randoms(use_true_random=False))
def test_frames_keep_their_order_and_come_once(frames, delay, jitter, rate, port_rate, random):  # type: ignore[no-untyped-def]
    shape = LinkShape(delay, rate, jitter, queue_s=NEVER)
    fabric = Fabric(3, shape, random.random)
    for pipe in (*fabric.uplinks, *fabric.downlinks):
        pipe.rate, pipe.queue_s = port_rate, NEVER
    now, sent = 0.0, {}
    for mark, (later, source, target, size) in enumerate(frames):
        now += later
        fabric.arrive(now, source, frame(mac(target), size, mark))
        if source != target:
            sent[mark] = (now, source, target, size)
    came = [(when, port, int.from_bytes(data[14:18], "big")) for when, port, data in out(fabric)]
    assert sorted(mark for _, _, mark in came) == sorted(sent)
    last: dict[tuple[int, int], int] = {}
    for when, port, mark in came:
        began, source, target, size = sent[mark]
        assert port == target
        assert when >= began + delay + size / min(rate or inf, port_rate or inf) - 1e-9
        assert last.get((source, target), -1) < mark
        last[source, target] = mark


# -- how it is written -----------------------------------------------------------------------------


def test_figures_are_read_with_their_units() -> None:
    assert [parse_seconds(text) for text in ("1ms", "250 us", "0.5S")] == [1e-3, 250e-6, 0.5]
    assert [parse_rate(text) for text in ("300mbit", "1gbit", "8kbit")] == [37.5e6, 125e6, 1e3]
    assert [parse_part(text) for text in ("1%", "0.25", "0")] == [0.01, 0.25, 0]
    for parse, text in ((parse_seconds, "1"), (parse_rate, "300"), (parse_part, "a")):
        with pytest.raises(LabError, match="not understood"):
            parse(text)


@pytest.mark.parametrize(
    "named", [{"delay_s": -1}, {"loss": 1.1}, {"rate_bytes_per_s": 0}, {"jitter_s": -0.1}]
)
def test_links_that_cannot_be_are_refused(named: dict[str, float]) -> None:
    with pytest.raises(LabError):
        LinkShape(**named)


# -- control groups --------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("share", "quota"), [(0.5, (2500, 5000)), (2, (10000, 5000)), (0.1, (1000, 10000))]
)
def test_a_share_of_the_cpu_is_dealt_in_short_periods(share: float, quota: tuple[int, int]) -> None:
    assert cpu_quota(share) == quota


def test_version_2_limits_all_in_one_group(tmp_path: Path) -> None:
    group = Group(Hierarchy(2, tmp_path, tmp_path, tmp_path), "board", "254:0")
    group.make()
    group.limit_cpu(0.5)
    group.limit_memory(4096)
    group.limit_reading(500)
    files = {"cpu.max": "2500 5000", "memory.max": "4096", "io.max": "254:0 rbps=500"}
    assert files_of(group.memory) == files
    loosen(group.memory)
    assert files_of(group.memory) == {**files, "cpu.max": "max", "io.max": "254:0 rbps=max"}
    group.limit_cpu(None)
    group.limit_memory(None)
    assert files_of(group.memory)["cpu.max"] == "max 5000"
    assert files_of(group.memory)["memory.max"] == "max"


def v1_group(tmp_path: Path) -> Group:
    folders = [tmp_path / name for name in ("memory", "blkio", "cpu")]
    for folder in folders:
        folder.mkdir()
    group = Group(Hierarchy(1, *folders), "board", "254:0")
    group.make()
    return group


def test_version_1_limits_one_group_in_each_hierarchy(tmp_path: Path) -> None:
    group = v1_group(tmp_path)
    assert group.cpu is not None
    group.limit_cpu(0.5)
    group.limit_reading(None)
    assert files_of(group.cpu) == {"cpu.cfs_quota_us": "2500", "cpu.cfs_period_us": "5000"}
    assert files_of(group.io) == {"blkio.throttle.read_bps_device": f"254:0 {1 << 40}"}
    loosen(group.io)
    assert files_of(group.io) == {"blkio.throttle.read_bps_device": "254:0 0"}


def test_version_1_raises_the_limit_with_swap_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, written = v1_group(tmp_path), []
    memsw = group.memory / "memory.memsw.limit_in_bytes"
    memsw.write_text("1000\n")
    write = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda self, text: written.append(self.name) or write(self, text)
    )
    for n_bytes in (2000, 500, None):
        group.limit_memory(n_bytes)
    plain = "memory.limit_in_bytes"
    assert written == [memsw.name, plain, plain, memsw.name, memsw.name, plain]
    assert memsw.read_text() == "-1"


def test_a_group_without_controllers_cannot_be_limited(tmp_path: Path) -> None:
    group = Group(Hierarchy(2, tmp_path, tmp_path), "board", None)
    for limit in (
        lambda: group.limit_cpu(1),
        lambda: group.limit_reading(1),
        lambda: group.counter,
    ):
        with pytest.raises(LabError):
            limit()
    with pytest.raises(LabError, match="cannot make"):
        Group(Hierarchy(2, tmp_path / "no", tmp_path / "no"), "board", None).make()


def test_a_container_that_sees_the_hosts_paths_uses_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    names = ("memory", "blkio", "cpu")
    own = tmp_path / "own"
    own.write_text("".join(f"{n}:{name}:/docker/abc\n" for n, name in enumerate(names)))
    for name in names:
        (tmp_path / name).mkdir()
    found = hierarchy(tmp_path, own, needs=("memory", "io", "cpu"))
    assert found == Hierarchy(1, *[tmp_path / name for name in names])
    (tmp_path / "memory/docker/abc").mkdir(parents=True)
    assert hierarchy(tmp_path, own).memory == tmp_path / "memory/docker/abc"


# -- records ---------------------------------------------------------------------------------------


def test_a_record_is_swept_only_when_it_is_not_held(tmp_path: Path) -> None:
    record, folder = Record.create(tmp_path / "records/lab"), tmp_path / "of it"
    record.add("folder", folder)
    record.add("group", tmp_path / "never made")
    (folder / "deep").mkdir(parents=True)
    assert sweep(tmp_path / "records") == 0
    assert folder.exists()
    record.close()
    assert sweep(tmp_path / "records") == 1
    assert not folder.exists()
    assert list((tmp_path / "records").iterdir()) == []
    assert sweep(tmp_path / "records") == sweep(tmp_path / "none") == 0


def test_undone_twice_is_undone_once(tmp_path: Path) -> None:
    record = Record.create(tmp_path / "lab")
    record.add("folder", tmp_path / "f")
    record.undo()
    (tmp_path / "f").mkdir()
    record.undo()
    record.close()
    assert (tmp_path / "f").exists()


# -- refusals --------------------------------------------------------------------------------------


def refusal(link: LinkShape | None = None) -> str:
    records = set(leftovers.RECORDS.glob("*"))
    with pytest.raises(LabError) as caught, Lab(1, link):
        pass
    assert set(leftovers.RECORDS.glob("*")) <= records
    return str(caught.value)


def test_boards_need_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in refusal()
    assert main(["--boards", "1"]) == 3
    assert "use sudo" in capsys.readouterr().err


def test_missing_tools_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(namespaces, "TUN", tmp_path / "tun")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "ip" else f"/bin/{name}")
    assert "apt install iproute2" in refusal()
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert "tun" in refusal(LinkShape())


@pytest.mark.parametrize("boards", [0, 201])
def test_a_lab_has_some_boards(boards: int) -> None:
    with pytest.raises(LabError, match="1 to 200"):
        Lab(boards)


def test_a_closed_lab_has_no_links() -> None:
    with pytest.raises(LabError, match="not open"):
        Lab(2).link(0, 1)


@pytest.mark.parametrize("words", [["--delay", "1"], ["--loss", "x"], ["--memory", "lots"]])
def test_an_unknown_command_line_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
