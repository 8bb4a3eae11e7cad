"""Whether the plan is kept: memory, bytes and seconds as promised."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench import paced
from bench.limits import Limits
from bench.paced import Paced
from bench.report import Measured
from bench.speed import by_turns, our_rates
from bench.window_models import WindowModels
from bench.window_rates import SLICE_BUDGET, SLICE_LAYERS
from bench.window_speed import MB, under

MIB = 1 << 20  # the unit of the plan's figures
PACE = 500 * MB
SHARES = (0.60, 0.25)
FEW, MANY = 4, 12  # tokens of the two runs whose difference is decoding and nothing else
KEPT_TOKENS = 20  # more than twice what the window waits for before it adapts
WHOLE = "2G"


def _runs(models: WindowModels) -> dict[Limits, list[Paced]]:
    """Our runs at the limits of the issue that were measured, or one each at 500 MB/s."""
    whole = models.tensor_bytes
    wanted = {int(share * whole) for share in SHARES}
    found = {limit: runs for limit, runs in models.runs.items() if limit.memory_bytes in wanted}
    return found or {
        limit: [under(models, limit)] for limit in (Limits(n, PACE) for n in sorted(wanted))
    }


def short_mb(plan: dict[str, Any]) -> float:
    """What of a budget is neither cache, nor activations, nor resident weights; MB of 2 ** 20."""
    model = plan["kv_cache_mb"] + plan["activations_mb"] + plan["resident_mb"]
    return float(plan["budget_mb"] - model)


def short(models: WindowModels, rounds: int) -> list[Measured]:
    """The most bytes that any of our runs spent beside the model."""
    plans = [run.report["plan"] for runs in _runs(models).values() for run in runs]
    values = tuple(short_mb(plan) for plan in plans)
    return [Measured("resident_mb_short", max(values), values, {"plans": plans}, "MB, the worst")]


def plan_error(models: WindowModels, rounds: int) -> list[Measured]:
    """Predicted ÷ measured s/token at each limit; the figure is the one farthest from 1."""
    ratios = {}
    for limit, runs in _runs(models).items():
        each = [run.report["plan"]["predicted_s_per_token"] / run.s_per_token for run in runs]
        name = f"{(limit.memory_bytes or 0) / MB:.0f}MB_{(limit.read_bytes_per_s or 0) / MB:.0f}mbs"
        ratios[name] = statistics.median(each)
    worst = max(ratios.values(), key=lambda value: abs(math.log(value)))
    return [Measured("plan_error", worst, tuple(ratios.values()), ratios, "the worst limit")]


def bytes_per_token(models: WindowModels, rounds: int) -> list[Measured]:
    """Bytes of the controller, of many tokens less few ÷ the bytes that must be read."""
    limit = Limits(int(SHARES[0] * models.tensor_bytes), PACE)
    memory = ("--memory", str(limit.memory_bytes))
    with tempfile.TemporaryDirectory(dir=models.folder) as home:

        def run(n: int) -> Paced:
            return paced.ours(models.pack(), limit, n, *memory, home=Path(home))

        run(1)  # finds out about the disk, which the others then know
        taken = by_turns({"few": lambda: run(FEW), "many": lambda: run(MANY)}, max(1, rounds // 2))
    pairs = list(zip(taken["few"], taken["many"], strict=True))
    values = tuple(_read_ratio(few, many) for few, many in pairs)
    raw = {name: [run.raw() for run in runs] for name, runs in taken.items()}
    return [Measured("bytes_per_token", statistics.median(values), values, raw)]


def _read_ratio(few: Paced, many: Paced) -> float:
    """Bytes read a token ÷ bytes touched and not resident."""
    plan = many.report["plan"]
    needed = plan["touched_bytes_per_token"] - plan["resident_mb"] * MIB
    return float((many.bytes_read - few.bytes_read) / (MANY - FEW) / needed)


def kept(models: WindowModels, rounds: int) -> list[Measured]:
    """The peak of a group that allows twice the budget ÷ the budget; the worst of three.

    A prompt fills nearly all of the context, and the disk has no limit.
    """
    packs = [(models.pack(), int(share * models.tensor_bytes)) for share in SHARES]
    packs.append((models.slice_of_70b(SLICE_LAYERS), SLICE_BUDGET))
    values, raw = [], {}
    for pack, budget in packs:
        memory = ("--memory", str(budget))
        run = paced.ours(pack, Limits(2 * budget), KEPT_TOKENS, *memory, prompt=paced.LONG_PROMPT)
        values.append(run.peak_bytes / budget)
        raw[f"{pack.name} {budget / MB:.0f}MB"] = run.raw()
    note = (
        f"the worst budget; {run.report['prompt_tokens']} tokens of prompt, {KEPT_TOKENS} decoded"
    )
    return [Measured("budget_kept", max(values), tuple(values), raw, note)]


def whole_model(models: WindowModels, rounds: int) -> list[Measured]:
    """s/token with a budget that covers the 1.1B shape ÷ without one; no limits, a warm cache."""
    pack = str(models.pack())
    taken = by_turns(
        {
            "budget": lambda: our_rates(pack, paced.THREADS, "--memory", WHOLE),
            "none": lambda: our_rates(pack, paced.THREADS),
        },
        rounds,
    )
    rates = {name: [rate["decode"] for rate in runs] for name, runs in taken.items()}
    value = statistics.median(rates["none"]) / statistics.median(rates["budget"])
    runs = tuple(b / a for a, b in zip(rates["budget"], rates["none"], strict=True))
    return [Measured("whole_model_budget", value, runs, {"tok_s": rates})]
