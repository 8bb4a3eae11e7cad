"""What `picoedge doctor --cluster` makes of what boards say."""

from __future__ import annotations

import pytest

from picoedge.jobs.cluster_check import CheckedBoard, Tried, judged
from picoedge.mesh.addresses import SILENT, Address

AT = Address("10.0.0.3", 7433)
WORKER = Address("10.0.0.3", 7434)
B3 = CheckedBoard("key", "b3", True, (AT,))
GONE = CheckedBoard("key", "b3", False, (AT,))


@pytest.mark.parametrize(
    ("daemons", "worker", "other", "is_own", "status", "said", "remedy"),
    [
        ([Tried(AT, "")], Tried(WORKER, ""), B3, True, "ok", "7434 was tried", ""),
        ([Tried(AT, "")], None, B3, True, "ok", "port 7433 of 10.0.0.3", ""),
        ([Tried(AT, "")], Tried(WORKER, SILENT), B3, True, "ok", "sums come by port 7433", ""),
        ([Tried(AT, SILENT)], None, B3, True, "fail", "no answer", "ufw allow 7433/tcp"),
        ([Tried(AT, SILENT)], None, B3, False, "warn", "no answer", "isolation of its clients"),
        ([Tried(AT, "no way there")], None, B3, False, "warn", "no way", "share no network"),
        ([Tried(AT, "nothing listens there")], None, B3, True, "fail", "nothing", "picoedge run"),
        ([], None, GONE, True, "warn", "it is not there now; no address", "start picoedge run"),
    ],
)
def test_a_way_and_what_to_do_about_it(
    daemons: list[Tried],
    worker: Tried | None,
    other: CheckedBoard,
    is_own: bool,
    status: str,
    said: str,
    remedy: str,
) -> None:
    check = judged("b1 to b3", "b1", other, daemons, worker, is_own=is_own)
    assert check.status == status
    assert said in check.text
    assert remedy in check.remedy
    assert bool(check.remedy) == (status != "ok")
