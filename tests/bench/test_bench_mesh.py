"""`python -m bench mesh|recovery`: rows, verdicts, what peers print, models for them."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import mesh, mesh_peers, mesh_speed, mesh_sums, recovery, report, suite
from bench import recovery_attack as attack
from bench.__main__ import main as bench_main
from bench.children import BenchError, Unready
from bench.mesh_cluster import Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.mesh_peer_files import write_distributed_llama, write_hugging_face
from bench.random_models import Shape
from bench.random_pack import write_pack
from bench.recovery_answers import Told
from bench.recovery_hostile import anonymous_mb
from bench.recovery_stalls import judge, stood_still
from bench.report import Measured
from bench.suite import Suite, Target
from hw.lab import LabError
from picoedge.errors import ProtocolError
from picoedge.mesh.transport.messages import read_control

TINY = Shape(256, 512, 2, 4, 2, 512, 128)


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", [mesh, recovery])
def test_every_row_has_a_target_and_one_measurement(bench: Any) -> None:
    assert sorted(name for names, _ in bench.GROUPS for name in names) == sorted(bench.TARGETS)
    for target in bench.TARGETS.values():
        report.meets(1.0, target.must)


def test_a_count_is_met_exactly() -> None:
    assert report.meets(20, "== 20")
    assert not report.meets(19, "== 20")
    assert not report.meets(21, "== 20")


@pytest.mark.parametrize("name", ["mesh", "recovery"])
def test_without_a_lab_nothing_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class NoLab:
        def __init__(self, *args: Any, **named: Any) -> None:
            raise LabError("emulated boards need root", "use sudo")

    monkeypatch.setattr("bench.mesh_cluster.Lab", NoLab)
    assert bench_main([name, "--json", "--models", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "need root" in err


def run_suite(groups: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    @contextmanager
    def prepared(options: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(suite, "describe_machine", dict)
    targets = {name: Target(">= 1", None) for names, _ in groups for name in names}
    made = Suite("some", "", targets, groups, lambda parser: None, prepared)
    return suite.run(made, ["--json"])


def test_rows_without_their_peer_are_told_and_the_others_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(prepared: Any, rounds: int) -> list[Measured]:
        raise Unready("needs --peer DIR")

    def broken(prepared: Any, rounds: int) -> list[Measured]:
        raise BenchError("it fell over")

    sound = (("a",), lambda prepared, rounds: [Measured("a", 2.0, (2.0,))])
    assert run_suite([sound, (("b",), lacking)], monkeypatch) == 3
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in closing["rows"]] == ["a"]
    assert closing["raw"]["failed"] == {"b": "needs --peer DIR"}
    assert run_suite([sound, (("b",), lacking), (("c",), broken)], monkeypatch) == 1
    assert run_suite([sound], monkeypatch) == 0


def test_peers_are_named_where_they_are_missing(tmp_path: Path) -> None:
    models = MeshModels(tmp_path, {"tpi-llm": tmp_path / "nowhere"})
    with pytest.raises(Unready, match="--distributed-llama DIR"):
        mesh_peers.distributed_llama(models, 1)
    with pytest.raises(Unready, match="nowhere"):
        mesh_peers.tpi_llm(models, 1)


def report_of(rate: float, **cluster: Any) -> dict[str, Any]:
    return {"decode_tok_s": rate, "text": "x", "tokens": [1], "cluster": cluster}


def test_a_quotient_is_of_medians_and_says_what_was_waited() -> None:
    ours = [report_of(20.0), report_of(30.0, allreduce="star", sums=100, sync_wait_s=0.05)]
    row = mesh_speed.quotient("r", "decode_tok_s", ours, [report_of(10.0), report_of(20.0)])
    assert (row.value, row.runs) == (25 / 15, (2.0, 1.5))
    assert "star, 0.50 ms waited a sum" in row.note
    assert "text" not in json.dumps(row.raw)


def test_an_exchange_is_held_against_half_an_echo() -> None:
    row = mesh_sums.against_echo("exchange_16kb", [1.1, 1.3], [2.0, 2.0], 0.5)
    assert row.value == pytest.approx(1.2)
    assert row.runs == pytest.approx((1.1, 1.3))


def test_the_worst_peak_of_each_row_is_kept(tmp_path: Path) -> None:
    models = MeshModels(tmp_path)
    models.keep("a", {"board1": 0.5, "board2": 0.7})
    models.keep("a", {"board1": 0.6})
    assert models.kept == {"a": 0.7}


# -- peers -----------------------------------------------------------------------------------------

PRINTED = """Evaluation
   nBatches: 32
    nTokens: 6
   tokens/s: 61.02 (16.39 ms/tok)
Prediction
    nTokens: 58
   tokens/s: 9.15 (109.29 ms/tok)
"""


def test_figures_that_peers_print_are_read() -> None:
    assert mesh_peers.dllama_printed(PRINTED) == 9.15
    with pytest.raises(BenchError, match="no prediction: Critical"):
        mesh_peers.dllama_printed("Critical error")
    times = json.dumps({"times": [0.0, 1.0, 1.5, 2.0, 2.5]})
    assert mesh_peers.tpi_printed(f"noise\n{times}\n", "") == 2.0
    with pytest.raises(BenchError, match="no module"):
        mesh_peers.tpi_printed("", "no module")


def test_a_listener_is_found_in_the_kernels_table() -> None:
    table = (
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:270F 00000000:0000 0A\n"
        "   1: 0100007F:2710 0100007F:270F 01\n"
    )
    assert mesh_peers.is_listening(table, 9999)
    assert not mesh_peers.is_listening(table, 10000)


def test_distributed_llamas_files_have_every_byte(tmp_path: Path) -> None:
    write_distributed_llama(tmp_path / "d", TINY)
    data = (tmp_path / "d/model.m").read_bytes()
    magic, header = struct.unpack_from("<ii", data)
    assert magic == 0xA00ABCD
    layer = 256 * 256 * 2 + 128 * 256 * 2 + 3 * 512 * 256
    blocks = (2 * layer + 512 * 256) // 32 * 18
    assert len(data) == header + 4 * (512 * 256 + 5 * 256) + blocks
    assert (tmp_path / "d/tokenizer.t").read_bytes()[:4] == struct.pack("<i", 0x567124)


def test_a_hugging_face_folder_is_read_by_our_own_reader(tmp_path: Path) -> None:
    from picoedge.store.sources.source import open_source

    write_hugging_face(tmp_path / "hf", TINY)
    source = open_source(tmp_path / "hf")
    assert source.config.num_hidden_layers == 2


def test_the_time_between_tokens_is_taken_on_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import peers_tpi

    clock = peers_tpi.Clock(None, skip_prompt=True)
    monkeypatch.setattr(peers_tpi, "TIMES", [])
    clock.put([1, 2])
    clock.put([3])
    clock.end()
    first, second = peers_tpi.TIMES
    assert first <= second


# -- recovery --------------------------------------------------------------------------------------


def told(losses: list[dict[str, Any]], decode_s: float = 2.0, blow: float = 101.0) -> Told:
    answer = {"tokens": [1, 2, 3], "s_per_token": decode_s / 2, "cluster": {"losses": losses}}
    return Told(answer, ended=103.0, worker_seen=99.0, blow=blow)


def test_only_a_stopped_board_may_be_given_up() -> None:
    lost = [{"board": "board3", "time": 102.0, "why": "stopped"}]
    assert judge("stopped", told(lost), True, "board3")["right"]
    assert not judge("stopped", told(lost), False, "board3")["right"]
    assert not judge("stopped", told([]), True, "board3")["right"]
    assert not judge("stopped", told([{**lost[0], "time": 110.0}]), True, "board3")["right"]
    assert judge("throttled", told([]), True, "board3")["right"]
    assert not judge("stuck", told(lost), True, "board3")["right"]


def test_a_blow_counts_in_mid_answer_and_where_it_told() -> None:
    assert told([]).is_struck_midway
    assert not told([], blow=100.5).is_struck_midway
    assert not stood_still("stuck", told([]), told([]))
    assert stood_still("stuck", told([], decode_s=7.0), told([]))
    assert stood_still("throttled", told([]), told([]))


def test_the_attacker_sends_sound_and_unsound_messages() -> None:
    dice, sound = random.Random(1), 0
    for _ in range(300):
        frames = attack.message_of(dice)
        try:
            read_control(frames)
            sound += 1
        except ProtocolError:
            pass
        assert attack.piece(dice)
    assert 20 < sound < 200


def test_memory_of_a_process_that_is_gone_is_none() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert anonymous_mb(process.pid) == 0.0


# -- a cluster -------------------------------------------------------------------------------------


def test_boards_compute_on_their_own_cores(tmp_path: Path) -> None:
    boards: Any = [SimpleNamespace(folder=tmp_path / name) for name in ("a", "b", "c")]
    lab: Any = SimpleNamespace(boards=boards)
    made = Cluster(lab, Kind(2, (100, 200), pinned=True), tmp_path / "m.pico")
    words = [made.on_core(board, ["true"]) for board in boards]
    assert [each[:2] for each in words] == [["taskset", "-c"]] * 3
    assert words[0] == words[2]  # the one beside runs where the first does, by turns
    assert [made.kind.budget(i) for i in range(3)] == [100, 200, 200]
    assert Cluster(lab, Kind(2, (1,)), tmp_path).on_core(boards[0], ["true"]) == ["true"]


def test_an_answer_over_real_boards(tmp_path: Path) -> None:
    write_pack(tmp_path / "m.pico", TINY)
    kind = Kind(2, (512 << 20,), n_ctx=64)
    try:
        with cluster(kind, tmp_path / "m.pico", tmp_path, beside=1) as boards:
            many = boards.generate("a lamp", 6)
            one = boards.alone(boards.lab.boards[2], "a lamp", 6)
            peaks = boards.peaks()
    except Unready as error:
        pytest.skip(str(error))
    assert many["boards"] == 2
    assert np.array_equal(many["tokens"], one["tokens"])
    assert set(peaks) == {"board1", "board2"}
    assert 0 < max(peaks.values()) < 2
