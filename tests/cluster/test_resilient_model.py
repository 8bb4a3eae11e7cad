"""A model over boards keeps a bounded account of what it survived."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from picoedge.cluster.recovery import Asked
from picoedge.cluster.resilient_model import MOST_FAILURES, ClusterModel
from picoedge.engine.options import OpenOptions
from picoedge.errors import BoardLostError
from picoedge.planner.cluster_plan import ClusterOptions


def test_a_chat_of_months_tells_of_the_last_losses() -> None:
    keys = SimpleNamespace(public="h" * 40)
    directory: Any = SimpleNamespace(identity=SimpleNamespace(keys=keys, name="desk"))
    pack: Any = None
    tell: Any = list[str]().append
    options = OpenOptions(n_ctx=8, cluster=ClusterOptions())
    model = ClusterModel(directory, pack, options, tell, None)
    model._names["b" * 40] = "b2"
    try:
        for number in range(3 * MOST_FAILURES):
            model._decide(Asked())
            model._failed(BoardLostError(f"loss {number}", key="b" * 40))
    finally:
        model._pauses.close()
    assert len(model.failures) == MOST_FAILURES
    assert model.failures[-1]["why"] == f"loss {3 * MOST_FAILURES - 1}"
