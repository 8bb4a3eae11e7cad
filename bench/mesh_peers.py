"""The mesh beside distributed-llama and TPI-LLM: the same two boards of one core, by turns.

Both are built or cloned elsewhere, and their folders are given to the bench.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.children import ROOT, BenchError
from bench.mesh_cluster import Cluster, cluster
from bench.mesh_models import MeshModels
from bench.mesh_speed import TWO, bare
from bench.paced import PROMPT
from bench.report import Measured
from bench.speed import by_turns
from hw.lab import Board

TOKENS, PEER_PROMPT = 48, "a lamp in the tower"
WORKER_PORT, MASTER_PORT, TPI_TOKENS = 9999, 29500, 12
START_S, RUN_S = 30.0, 600.0
_PREDICTION = re.compile(r"Prediction\s+nTokens:\s*(\d+)\s+tokens/s:\s*([\d.]+)")
TPI_BYTES = 4 << 30  # of a board: half of the model in f32, and PyTorch


def distributed_llama(models: MeshModels, rounds: int) -> list[Measured]:
    """Our decoding ÷ theirs: Q40 weights, Q80 between boards, which is all they offer."""
    binary = models.peer("distributed-llama") / "dllama"
    if not binary.is_file():
        raise BenchError(f"no {binary}: make dllama")
    folder = models.for_distributed_llama()
    with cluster(TWO, models.pack(), models.folder) as boards:
        model = boards.hub.copy(folder, "peer")
        with dllama_worker(boards, binary):
            return [_row("vs_distributed_llama", boards, rounds, lambda: dllama_rate(
                boards, binary, model))]  # fmt: skip


def tpi_llm(models: MeshModels, rounds: int) -> list[Measured]:
    """Our decoding ÷ theirs: f32, all of it in memory, no memory scheduler."""
    clone = models.peer("tpi-llm")
    folder = tpi_split(clone, models.for_tpi_llm())
    kind = replace(TWO, budgets=(TPI_BYTES,))
    with cluster(kind, models.pack(), models.folder) as boards:
        for board in boards.boards:
            board.copy(folder, "peer")
        return [_row("vs_tpi_llm", boards, rounds, lambda: tpi_rate(boards, clone))]


def _row(name: str, boards: Cluster, rounds: int, theirs: Callable[[], float]) -> Measured:
    boards.generate(PROMPT, 4)
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: boards.generate(PROMPT, TOKENS), "theirs": theirs,
    }  # fmt: skip
    taken = by_turns(sides, rounds)
    ours = [float(report["decode_tok_s"]) for report in taken["ours"]]
    mine, other = statistics.median(ours), statistics.median(taken["theirs"])
    runs = tuple(a / b for a, b in zip(ours, taken["theirs"], strict=True))
    raw = {"ours": bare(taken["ours"]), "their_tok_s": taken["theirs"]}
    return Measured(name, mine / other, runs, raw, f"{mine:.2f} tok/s, theirs {other:.2f}")


# -- distributed-llama -----------------------------------------------------------------------------


@contextmanager
def dllama_worker(boards: Cluster, binary: Path) -> Iterator[None]:
    """Their worker on the second board, for as long as it takes; it gets its weights by wire."""
    board = boards.boards[1]
    words = [str(binary), "worker", "--port", str(WORKER_PORT), "--nthreads", "1"]
    process = board.start(boards.on_core(board, words), stdout=subprocess.DEVNULL)
    try:
        await_listener(process, WORKER_PORT)
        yield
    finally:
        process.kill()
        process.wait()


def await_listener(process: subprocess.Popen[Any], port: int) -> None:
    """Return once a process's namespace has a listener on a port. Raises BenchError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if is_listening(Path(f"/proc/{process.pid}/net/tcp").read_text(), port):
            return
        time.sleep(0.05)
    raise BenchError(f"{process.args!r} does not listen on {port}")


def is_listening(table: str, port: int) -> bool:
    """Whether the text of /proc/PID/net/tcp has a listener on that port."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(int(row[1].rpartition(":")[2], 16) == port and row[3] == "0A" for row in rows)


def dllama_rate(boards: Cluster, binary: Path, model: Path) -> float:
    """Tokens a second, as their root prints it."""
    words = [
        str(binary), "inference", "--model", str(model / "model.m"),
        "--tokenizer", str(model / "tokenizer.t"), "--buffer-float-type", "q80",
        "--prompt", PEER_PROMPT, "--steps", str(TOKENS + 16), "--nthreads", "1",
        "--temperature", "0", "--seed", "1", "--max-seq-len", "512",
        "--workers", f"{boards.boards[1].address}:{WORKER_PORT}",
    ]  # fmt: skip
    done = boards.hub.run(boards.on_core(boards.hub, words), timeout_s=RUN_S)
    return dllama_printed(done.stdout + done.stderr)


def dllama_printed(text: str) -> float:
    """Tokens a second of the prediction in what distributed-llama prints."""
    found = _PREDICTION.search(text)
    if found is None or int(found[1]) < TOKENS // 2:
        raise BenchError(f"distributed-llama printed no prediction: {text[-400:]}")
    return float(found[2])


# -- TPI-LLM ---------------------------------------------------------------------------------------


def tpi_python(clone: Path) -> str:
    """The interpreter that has what it needs: `venv/bin/python` in its folder."""
    path = clone / "venv" / "bin" / "python"
    if not path.exists():
        raise BenchError(f"no {path}: python -m venv venv && venv/bin/pip install -r requirements")
    return str(path)


def tpi_split(clone: Path, folder: Path) -> Path:
    """The model with their slices in `split/`, made once by their own code."""
    if not (folder / "split").exists():
        script = (
            "import sys; from tpi_llm.split import split_pretrained_model as s;"
            "s(model_path=sys.argv[1], world_size=2, ratio=[0.5, 0.5], save_dir='part-split')"
        )
        command = [tpi_python(clone), "-c", script, str(folder)]
        environment = {"PYTHONPATH": str(clone / "src"), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"TPI-LLM does not split: {done.stderr[-400:]}")
        (folder / "part-split").rename(folder / "split")
    return folder


def tpi_rate(boards: Cluster, clone: Path) -> float:
    """Tokens a second: the median of the times between tokens on their master."""
    master, other = boards.boards
    process = master.start(
        _tpi_command(boards, master, clone, 0), env=_tpi_environment(clone),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        await_listener(process, MASTER_PORT)
        helper = other.start(
            _tpi_command(boards, other, clone, 1), env=_tpi_environment(clone),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=RUN_S)
        finally:
            helper.kill()
            helper.wait()
    finally:
        process.kill()
    return tpi_printed(out, err)


def tpi_printed(out: str, err: str) -> float:
    """Tokens a second of the times that the adapter prints in its last line."""
    try:
        times = json.loads(out.strip().splitlines()[-1])["times"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise BenchError(f"TPI-LLM ended: {err[-400:]}") from None
    gaps = [b - a for a, b in pairwise(times[1:])]  # times[0] is the prompt's
    if len(gaps) < 3:
        raise BenchError(f"TPI-LLM made only {len(times)} tokens")
    return 1 / float(statistics.median(gaps))


def _tpi_command(boards: Cluster, board: Board, clone: Path, rank: int) -> list[str]:
    script = str(ROOT / "bench" / "peers_tpi.py")
    words = [
        tpi_python(clone), script, "--rank", str(rank), "--world_size", "2",
        "--master_ip", boards.hub.address, "--master_port", str(MASTER_PORT),
        "--model_path", str(board.folder / "peer"), "--prompt", PEER_PROMPT,
        "--length", str(TPI_TOKENS),
    ]  # fmt: skip
    return boards.on_core(board, words)


def _tpi_environment(clone: Path) -> dict[str, str]:
    path = f"{clone / 'src'}:{clone / 'examples'}"
    return {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
