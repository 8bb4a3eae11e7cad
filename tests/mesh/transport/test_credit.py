"""A replaceable notification is sent when the last one was read, and cuts no connection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picoedge.mesh.transport.credit import PushCredit

DAY_S = 24 * 3600.0
REPORT_S = 0.25
SMALLEST_QUEUE = 256  # of a client of an earlier version


@given(st.lists(st.sampled_from(["offer", "read"]), max_size=200))
def test_one_is_under_way_and_the_newest_is_the_last_one_read(events: list[str]) -> None:
    credit, offered, sent, read = PushCredit(True, 0.0), 0, [], 0
    for event in events:
        body = None
        if event == "offer":
            offered += 1
            body = credit.offer("report", {"n": offered}, 0.0)
        elif len(sent) > read:
            read += 1
            body = credit.acknowledged("report")
        if body is not None:
            sent.append(body["n"])
        assert len(sent) - read <= 1
    while len(sent) > read:
        read += 1
        if (body := credit.acknowledged("report")) is not None:
            sent.append(body["n"])
    assert sent == sorted(set(sent))
    assert not offered or sent[-1] == offered


def test_kinds_do_not_wait_for_each_other() -> None:
    credit = PushCredit(True, 0.0)
    assert credit.offer("report", {"n": 1}, 0.0)
    assert credit.offer("queued", {"n": 1}, 0.0)
    assert credit.offer("report", {"n": 2}, 0.0) is None
    assert credit.acknowledged("queued") is None
    assert credit.acknowledged("report") == {"n": 2}


def test_an_acknowledgement_of_nothing_has_no_effect() -> None:
    credit = PushCredit(True, 0.0)
    assert credit.acknowledged("anything") is None
    assert credit.offer("report", {}, 0.0) == {}
    assert credit._unread == {"report"}


def test_a_client_of_an_earlier_version_may_leave_a_day_of_reports_unread() -> None:
    credit = PushCredit(False, 0.0)
    times = (n * REPORT_S for n in range(int(DAY_S / REPORT_S)))
    sent = [now_s for now_s in times if credit.offer("report", {}, now_s) is not None]
    assert sent[:16] == [n * REPORT_S for n in range(16)]
    assert len(sent) < SMALLEST_QUEUE
    credit.heard(DAY_S)
    assert credit.offer("report", {}, DAY_S) is not None
