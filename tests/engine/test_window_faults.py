"""Storage that fails under a running program: one line, exit code 1, what was said is kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from picoedge.registry.catalogue import built_in_folder
from picoedge.store.pack.reader import Pack
from picoedge.store.shards import UnitKind

pytest_plugins = ["fault_fixtures"]

SUPPORT = Path(__file__).parents[1] / "support"
ENOUGH_S = 60  # for any of these programs, of which each takes about one
PROMPT = ["-p", "The capital of France is", "--raw", "-n", "10", "--ctx-size", "128"]
COMMAND = ["generate", *PROMPT, "--temperature", "0"]
STREAM = ["--memory", "110M", "--window-io"]
BOTH = ["direct", "mmap"]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A board of its own, on which storage is measured once."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if name[:9] != "PICOEDGE_"}
    places = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "PICOEDGE_HOME")
    return {
        **kept,
        **{name: str(home / name) for name in places},
        "PYTHONPATH": os.pathsep.join([str(built_in_folder().parent), str(SUPPORT), *sys.path]),
    }


class Board:
    """Runs programs whose storage is as told."""

    def __init__(self, shim: Path, environ: dict[str, str], pack: Path) -> None:
        self.shim, self.environ, self.pack = shim, environ, pack

    def start(self, *command: str | Path, **faults: object) -> subprocess.Popen[str]:
        told = {f"FAULTY_{name.upper()}": str(value) for name, value in faults.items()}
        preload = {"LD_PRELOAD": str(self.shim), "FAULTY_PATH": ".safetensors"}
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**self.environ, **preload, **told},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str | Path, **faults: object) -> tuple[int, str, str]:
        return ended(self.start(*command, **faults))

    def generate(self, *args: str, **faults: object) -> tuple[int, str, str]:
        return self.run("-m", "picoedge", *COMMAND, self.pack, *args, **faults)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=ENOUGH_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def board(shim: Path, environ: dict[str, str], smollm2_pack: Path) -> Board:
    return Board(shim, environ, smollm2_pack)


@pytest.fixture(scope="module")
def want(board: Board) -> str:
    code, out, err = board.generate()
    assert (code, err) == (0, "")
    assert len(out.split()) > 4
    return out


@pytest.fixture(scope="module")
def reads(board: Board, want: str, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a sound run reads, without what a run reads that measures the storage.

    A run does that at first, and again if the board was busy meanwhile.
    """
    count = tmp_path_factory.mktemp("count") / "reads"

    def counted() -> int:
        assert board.generate(*STREAM, "direct", count=count) == (0, want, "")
        return int(count.read_text())

    return min(counted() for _ in range(3))


def one_line(err: str) -> str:
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def named_byte(pack: Path, err: str) -> int:
    """The byte that an error names; it is one of the shard, and in the file, that it names."""
    named = re.match(r"(?:error: )?(.*), shard (layer-(\d+)|head)/(\w+)\.(\d+), byte (\d+): ", err)
    assert named is not None, err
    path, folder, layer, kind, shard, byte = named.groups()
    assert path == f"{pack / folder}.safetensors"
    shards = range(int(shard), int(shard) + 1)
    unit = Pack.open(pack).unit(cast("UnitKind", kind), int(layer or 0), shards)
    assert unit.offset <= int(byte) < unit.end
    return int(byte)


@pytest.mark.parametrize("io", BOTH)
def test_the_text_is_the_same_as_without_a_budget(board: Board, want: str, io: str) -> None:
    assert board.generate(*STREAM, io) == (0, want, "")
    code, out, _ = board.generate(*STREAM, io, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["text"] == want[:-1]
    assert report["plan"]["window_io"] == io
    assert report["plan"]["streamed_units"] > 10


@pytest.mark.parametrize(
    ("how", "said"), [("eio", "reading failed: Input/output error"), ("zero", "the file ends")]
)
def test_a_read_that_fails(board: Board, want: str, reads: int, how: str, said: str) -> None:
    code, out, err = board.generate(*STREAM, "direct", how=how, after=reads * 3 // 4)
    assert code == 1
    assert said in one_line(err)
    named_byte(board.pack, err)
    assert len(out) > 3
    assert want.startswith(out.rstrip("\n"))


def test_json_keeps_what_was_said(board: Board, want: str, reads: int) -> None:
    args = (*STREAM, "direct", "--json")
    code, out, err = board.generate(*args, how="eio", after=reads * 3 // 4)
    report = json.loads(out)
    assert code == 1
    assert "reading failed" in one_line(err)
    assert len(report["text"]) > 3
    assert want.startswith(report["text"])


def test_a_read_that_fails_while_the_model_is_opened(board: Board, reads: int) -> None:
    code, out, err = board.generate(*STREAM, "direct", how="eio", after=reads // 20)
    assert (code, out) == (1, "")
    assert "Input/output error" in one_line(err)


def test_short_reads_are_continued(board: Board, want: str, reads: int) -> None:
    assert board.generate(*STREAM, "direct", how="short", after=reads * 9 // 10) == (0, want, "")


def test_a_slow_read_is_survived(board: Board, want: str, reads: int) -> None:
    args = (*STREAM, "direct", "--json")
    code, out, err = board.generate(*args, how="slow", s=1.5, after=reads * 3 // 4)
    report = json.loads(out)
    assert (code, err, report["text"]) == (0, "", want[:-1])
    assert report["unit_wait"]["max_s"] > 1


HANGING = """
import sys
from pathlib import Path
from picoedge.errors import StorageError
from picoedge.store.pack.reader import Pack
from picoedge.store.window.read_ahead import Window
from picoedge.store.reads import Files
from picoedge.store.window.io import DirectIO
from window_models import plan_of
pack = Pack.open(Path(sys.argv[1]))
plan = plan_of(pack, 1 << 18)
places = dict(zip(plan.streamed, plan.ring.places, strict=True))
io = DirectIO(Files(pack.path, direct=True), plan.ring.nbytes, places)
window = Window(plan.streamed, plan.ring, io, folder=pack.path, readers=3, stall_s=0.5)
try:
    for i in range(len(plan.streamed)):
        window.acquire(i)
        window.release(i)
except StorageError as error:
    window.close()
    print(error.message)
    sys.exit(1)
"""


def test_a_storage_that_never_answers_ends_in_time(board: Board) -> None:
    code, out, err = board.run("-c", HANGING, board.pack, how="hang", after=100)
    assert (code, err) == (1, "")
    assert "the storage has not answered" in out
    named_byte(board.pack, out)


HANGING_ROWS = """
import sys
from pathlib import Path
import numpy as np
from picoedge.errors import StorageError
from picoedge.store.pack.reader import Pack
from picoedge.store.reads import RowFile
pack = Pack.open(Path(sys.argv[1]))
found = pack.row_reader()
rows = RowFile(pack.path, found._shards, found._decode, stall_s=0.5)
try:
    for row in range(1000):
        rows.gather([row], np.zeros((1, pack.config.hidden_size), np.float32))
except StorageError as error:
    print(error.message)
    sys.exit(1)
"""


def test_rows_of_tokens_that_never_come_end_in_time(board: Board) -> None:
    code, out, err = board.run("-c", HANGING_ROWS, board.pack, how="hang", after=200)
    assert (code, err) == (1, "")
    assert re.search(r"shard head/head\.\d+, byte \d+: the storage has not answered", out)


@pytest.fixture
def own(board: Board, tmp_path: Path) -> Iterator[Board]:
    """The same with a pack that may be damaged."""
    shutil.copytree(board.pack, tmp_path / "own.pico")
    yield Board(board.shim, board.environ, tmp_path / "own.pico")
    shutil.rmtree(tmp_path / "own.pico")


def stopped_and_cut(board: Board, file: str, *args: str) -> tuple[int, str, str]:
    """What becomes of a program whose file is cut after it has said three pieces."""
    process = board.start("-m", "picoedge", *COMMAND, board.pack, *args, stop=3)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.truncate(board.pack / f"{file}.safetensors", 8192)
    process.send_signal(signal.SIGCONT)
    return ended(process)


@pytest.mark.parametrize("io", BOTH)
def test_a_file_that_is_cut_before_it_is_read_again(own: Board, want: str, io: str) -> None:
    code, out, err = stopped_and_cut(own, "layer-015", *STREAM, io)
    assert code == 1
    assert "the file ends" in one_line(err)
    assert "shard layer-015/" in err
    assert len(out) > 3
    assert want.startswith(out.rstrip("\n"))


@pytest.mark.parametrize(
    ("file", "args"),
    [
        ("layer-000", []),
        ("head", []),
        ("layer-000", ["--kernels", "numpy"]),
    ],
)
def test_mapped_pages_that_are_lost(own: Board, want: str, file: str, args: list[str]) -> None:
    code, out, err = stopped_and_cut(own, file, *args)
    assert code == 1
    assert f"a file of {own.pack} that is in use can no longer be read" in one_line(err)
    assert len(out) > 3
    assert want.startswith(out.rstrip("\n"))


def test_a_cut_file_that_rows_of_tokens_are_looked_up_in(own: Board, want: str) -> None:
    code, out, err = stopped_and_cut(own, "head", *STREAM, "direct")
    assert code == 1
    assert re.search(r"head\.safetensors, .*byte \d+: the file ends", one_line(err))
    assert want.startswith(out.rstrip("\n"))


def test_pages_that_are_lost_or_cut_as_they_are_read_ahead(own: Board, want: str) -> None:
    code, out, err = stopped_and_cut(own, "layer-000", *STREAM, "mmap")
    assert code == 1
    assert re.search("can no longer be read|the file ends", one_line(err))
    assert want.startswith(out.rstrip("\n"))


@pytest.mark.parametrize("io", BOTH)
def test_verify_finds_a_flipped_byte_while_streaming(own: Board, want: str, io: str) -> None:
    path = own.pack / "layer-017.safetensors"
    offset = path.stat().st_size - 1000
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
    code, _, err = own.generate(*STREAM, io, "--verify")
    assert code == 1
    assert "does not match its hash" in one_line(err)
    assert 0 <= offset - named_byte(own.pack, err) < 1 << 20
    code, _, err = own.run("-m", "picoedge", "verify", own.pack)
    assert code == 1
    assert "layer-017/ffn" in one_line(err)
