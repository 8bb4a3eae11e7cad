"""Reports of memory plans and of timings: fields for JSON, lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from picoedge.units import MB, format_size

if TYPE_CHECKING:
    from picoedge.engine.open import OpenPack
    from picoedge.engine.session import LanguageModel, Session, Stats
    from picoedge.errors import PicoedgeError
    from picoedge.planner.memory import MemoryPlan


def window(model: LanguageModel, waited_s: float, elapsed_s: float) -> dict[str, Any]:
    """JSON fields of the memory plan as it was made (None: all weights are mapped), and its effect.

    `resident_mb` and `window_depth` are the present ones: the plan adapts to measured speeds.
    """
    plan, tuner = model.slice.memory_plan, model.slice.tuner
    now = tuner.plan.window if tuner else None
    usage = tuner.usage if tuner else None
    return {
        "disk_wait_s": waited_s,
        "compute_s": elapsed_s - waited_s,
        "window_depth": now.ring.depth if now else 0,
        "resident_mb": now.resident_bytes / MB if now else None,
        "unit_wait": usage and {
            "units": usage.units,
            "mean_s": usage.wait_s / max(1, usage.units),
            "max_s": usage.longest_wait_s,
        },
        "plan": plan.to_json() if plan else None,
    }  # fmt: skip


def cluster(model: object) -> dict[str, Any]:
    """JSON fields of a model over several boards; none of a model on this board."""
    report = getattr(model, "report", None)
    return {"cluster": report()} if report is not None else {}


def adapter(opened: OpenPack) -> dict[str, Any]:
    """JSON fields of the adapter that a model runs with; none without one."""
    return {} if opened.adapter is None else {"adapter": opened.adapter.to_json()}


def failure(error: PicoedgeError) -> dict[str, Any]:
    """JSON fields of an answer that an error interrupted."""
    return {"finish_reason": "error", "error": {"message": error.message, "hint": error.hint}}


def plan_line(plan: MemoryPlan | None) -> str:
    """`104 MB resident, window 7.5 MB, 513 MB read a token: 0.22 s predicted, by the disk`."""
    if plan is None or not plan.window.streamed:
        return "all of it in memory"
    held, forecast = plan.window, plan.window.forecast
    return (
        f"{format_size(held.resident_bytes)} resident, window {format_size(held.window_bytes)}, "
        f"{format_size(held.streamed_bytes)} read a token: {forecast.s_per_token:.2g} s predicted, "
        f"by {'the disk' if forecast.clock == 'disk' else 'computing'}"
    )


def timings(session: Session) -> list[str]:
    """Lines on the last answer: its rates, and the wait for weights where some are streamed."""
    stats, steps = session.stats, session.stats.decode_steps
    if session.model.slice.memory_plan is None or not steps:
        return [rates(stats)]
    waiting = waiting_line(stats.disk_wait_s, stats.decode_s, stats.bytes_streamed, steps)
    return [rates(stats), waiting]


def rates(stats: Stats) -> str:
    """`prompt 23 tokens (12 reused) 310 tok/s · answer 57 tokens 92 tok/s`."""
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    prompt = f"prompt {stats.prompt_tokens} tokens{reused}{_rate(stats.prefill_tok_s)}"
    return f"{prompt} · answer {len(stats.tokens)} tokens{_rate(stats.decode_tok_s)}"


def _rate(tok_s: float | None) -> str:
    return "" if tok_s is None else f" {tok_s:.1f} tok/s"


def waiting_line(waited_s: float, elapsed_s: float, n_bytes: int, tokens: int) -> str:
    """`a token: 0.24 s waiting, 0.041 s computing, 513 MB read`."""
    computing = max(0.0, elapsed_s - waited_s) / tokens
    return (
        f"a token: {waited_s / tokens:.2g} s waiting, {computing:.2g} s computing, "
        f"{format_size(n_bytes / tokens)} read"
    )
