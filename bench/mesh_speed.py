"""Speed over boards: two beside one, uneven shares, pooled memory, and eight as forecast."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bench.children import BenchError
from bench.mesh_cluster import Cluster, Kind, cluster
from bench.mesh_models import MeshModels
from bench.paced import PROMPT
from bench.report import Measured
from bench.speed import by_turns
from hw.lab import Board, BoardLimits, LinkShape

MB = 10**6
PROMPT_TOKENS, TOKENS = 256, 64
# Of the random models' vocabulary: 25 times 10 tokens, five words of one, and the first of all.
LONG_PROMPT = " ".join([*[PROMPT] * 25, "in", "by", "in", "by", "in"])
AMPLE = 2 << 30
ONE_CORE = BoardLimits(cpu=1.0)
# A core each: a quota of one on top of it would stop a board for as long as two clocks differ.
TWO = Kind(2, (AMPLE,), pinned=True)
Reports = Sequence[dict[str, Any]]


def two_boards(models: MeshModels, rounds: int) -> list[Measured]:
    """A prompt of 256 tokens and 64 decoded over two boards of a core ÷ on one such board.

    Emulated boards share what boards on a desk do not, such as the way to memory: the note says
    how fast each of two is that have nothing to do with each other.
    """
    with cluster(TWO, models.pack(), models.folder, beside=2) as boards:
        alone, other = boards.lab.boards[2:]
        boards.generate(LONG_PROMPT, 4)  # slices and probes are there from now on
        taken = by_turns(
            {
                "two": lambda: boards.generate(LONG_PROMPT, TOKENS),
                "one": lambda: boards.alone(alone, LONG_PROMPT, TOKENS),
                "each": lambda: at_once(boards, (alone, other)),
            },
            rounds,
        )
        models.keep("two_boards", boards.peaks())
    if taken["one"][0]["prompt_tokens"] != PROMPT_TOKENS:
        raise BenchError(f"a prompt of {taken['one'][0]['prompt_tokens']} tokens")
    rows = []
    for kind in ("decode", "prefill"):
        row = quotient(f"two_boards_{kind}", f"{kind}_tok_s", taken["two"], taken["one"])
        apart = quotient(kind, f"{kind}_tok_s", taken["each"], taken["one"]).value
        rows.append(replace(row, note=f"{row.note}; each of two apart: {apart:.2f} of one alone"))
    return rows


def at_once(boards: Cluster, pair: Sequence[Board]) -> dict[str, Any]:
    """The report of the slower of two boards that answer at the same time, each for itself."""
    with ThreadPoolExecutor(len(pair)) as pool:
        reports = list(pool.map(lambda board: boards.alone(board, LONG_PROMPT, TOKENS), pair))
    return min(reports, key=lambda report: float(report["decode_tok_s"]))


def quotient(name: str, rate: str, ours: Reports, others: Reports) -> Measured:
    """The median of a rate ÷ that of others, runs paired; with what was waited for sums."""
    mine, theirs = ([float(report[rate]) for report in side] for side in (ours, others))
    value = statistics.median(mine) / statistics.median(theirs)
    runs = tuple(a / b for a, b in zip(mine, theirs, strict=True))
    note = f"{statistics.median(mine):.2f} tok/s, {statistics.median(theirs):.2f}; {sums(ours)}"
    return Measured(name, value, runs, {"ours": bare(ours), "others": bare(others)}, note)


def sums(reports: Reports) -> str:
    """How sums came together in the last of some runs, and what they took."""
    last = reports[-1].get("cluster") or {}
    waited, count = last.get("sync_wait_s", 0.0), max(1, last.get("sums", 1))
    return f"{last.get('allreduce')}, {1e3 * waited / count:.2f} ms waited a sum"


def bare(reports: Reports) -> list[dict[str, Any]]:
    """Reports without texts, for the raw figures."""
    return [{k: v for k, v in each.items() if k not in ("text", "tokens")} for each in reports]


def uneven(models: MeshModels, rounds: int) -> list[Measured]:
    """Decoding with shares of 2 to 1 ÷ with equal ones, the second board at half its CPU."""
    with cluster(replace(TWO, limits=ONE_CORE), models.pack(), models.folder) as boards:
        boards.boards[1].limit(cpu=0.5)
        boards.generate(PROMPT, 4)
        taken = by_turns(
            {
                "uneven": lambda: boards.generate(PROMPT, TOKENS, "-ts", "2,1"),
                "equal": lambda: boards.generate(PROMPT, TOKENS, "-ts", "1,1"),
            },
            rounds,
        )
        models.keep("uneven", boards.peaks())
    return [quotient("uneven", "decode_tok_s", taken["uneven"], taken["equal"])]


def pooled_memory(models: MeshModels, rounds: int) -> list[Measured]:
    """s/token of one board that streams ÷ of two that hold all, a disk of 100 MB/s each."""
    budget = int(model_bytes(models) / 1.5)
    limits = BoardLimits(cpu=1.0, memory_bytes=budget, disk_bytes_per_s=100 * MB)
    kind = Kind(2, (budget,), limits=limits, pinned=True, n_ctx=256)
    with cluster(kind, models.pack(), models.folder, beside=1) as boards:
        alone, memory = boards.lab.boards[2], ("--memory", str(budget))
        boards.generate(PROMPT, 4)
        taken = by_turns(
            {
                "two": lambda: boards.generate(PROMPT, TOKENS),
                "one": lambda: boards.alone(alone, PROMPT, 6, *memory),
            },
            max(1, rounds // 2),
        )
        models.keep("pooled_memory", boards.peaks())
    row = quotient("pooled_memory", "decode_tok_s", taken["two"], taken["one"])
    return [row]


def model_bytes(models: MeshModels) -> int:
    """Bytes of the 1.1B shape's tensors."""
    return sum(path.stat().st_size for path in models.pack().glob("*.safetensors"))


def eight_boards(models: MeshModels, rounds: int) -> list[Measured]:
    """Seconds a token as the plan says ÷ as measured, over TPI-LLM's own network."""
    limits = BoardLimits(cpu=0.2, port_bytes_per_s=300e6 / 8)
    kind = Kind(8, (512 << 20,), LinkShape(delay_s=0.001), limits, n_ctx=256)
    with cluster(kind, models.pack(), models.folder) as boards:
        boards.generate(PROMPT, 2)
        reports = [boards.generate(PROMPT, 16) for _ in range(max(1, rounds // 2))]
        models.keep("eight_boards_plan", boards.peaks())
    runs = tuple(predicted(report) / report["s_per_token"] for report in reports)
    note = f"{predicted(reports[-1]):.3f} s/token predicted, {sums(reports)}"
    value = statistics.median(runs)
    return [Measured("eight_boards_plan", value, runs, {"ours": bare(reports)}, note)]


def predicted(report: dict[str, Any]) -> float:
    """Seconds a token that the plan of a session promised."""
    return float(report["cluster"]["predicted_s_per_token"])


def budget_kept(models: MeshModels, rounds: int) -> list[Measured]:
    """Peak memory of a board's control group ÷ its budget, the worst of all runs until now.

    Two more: a nearly full context in budgets that hold the slices, and in some that stream them.
    """
    whole = model_bytes(models)
    for name, budget in (("holding", int(whole * 0.8)), ("streaming", int(whole * 0.4))):
        with cluster(Kind(2, (budget,), pinned=True), models.pack(), models.folder) as boards:
            boards.generate(LONG_PROMPT, 20)
            models.keep(f"{name}_{budget // MB}MB", boards.peaks())
    runs = tuple(models.kept.values())
    worst = max(models.kept, key=lambda row: models.kept[row])
    return [Measured("budget_kept", max(runs), runs, dict(models.kept), f"the worst: {worst}")]
