"""What is reported of a plan and of how it went: fields for JSON, lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picoedge.engine.planning import MemoryPlan

MB = 1 << 20


def window(plan: MemoryPlan | None, waited_s: float, elapsed_s: float) -> dict[str, Any]:
    """JSON fields: the plan (None where nothing is streamed), and waiting against computing."""
    return {
        "disk_wait_s": waited_s,
        "compute_s": elapsed_s - waited_s,
        "window_depth": plan.window.ring.depth if plan else 0,
        "resident_mb": plan.window.resident_bytes / MB if plan else None,
        "plan": plan.to_json() if plan else None,
    }
