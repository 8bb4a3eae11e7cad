"""Workers that are killed or stopped amid an answer: the text goes on as it would have."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_answers import begin, check_told_and_undisturbed
from cluster_boards import ClusterOf

pytest_plugins = ["fault_cluster"]

HARMS = {
    "killed": ("kill", r"b2: killed: .*"),
    "stopped": ("suspend", r"b2: its worker is stopped"),
}
CASES = [(harm, transport) for harm in HARMS for transport in ("stream", "zeromq")]


@pytest.mark.parametrize(("harm", "transport"), CASES, ids=map(" ".join, CASES))
def test_the_text_goes_on_without_the_worker(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str, harm: str, transport: str
) -> None:
    how, told = HARMS[harm]
    allreduce = "exchange" if harm == "killed" else "star"
    over = ["--allreduce", allreduce, "--transport", transport]
    session = begin(cluster, smollm2_pack, "-c", "512", *over)
    getattr(cluster[2].worker(), how)()
    check_told_and_undisturbed(session, told, undisturbed)


def test_a_worker_with_some_of_the_head_may_die_as_well(
    cluster: ClusterOf, smollm2_pack: Path, undisturbed: str
) -> None:
    session = begin(cluster, smollm2_pack, "-c", "512", "-ts", "1,1,1", "--split-head")
    cluster[2].worker().kill()
    check_told_and_undisturbed(session, r"b2: killed: .*", undisturbed)
