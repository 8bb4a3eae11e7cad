"""What other boards report of themselves: known fields, within bounds; pages that always fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.jobs.status import PAGE_BYTES, PAGES, page_of, read_mesh, read_report
from picoedge.mesh.transport.client import ask_pages
from picoedge.mesh.transport.limits import CONTROL_BYTES

REPORT = {
    "does": "computing", "state": "disk", "holder": "hub", "model": "llama", "attention": [2, 4],
    "ffn": [11, 22], "head_shards": [40, 64], "rss_bytes": 210, "memory_bytes": 512,
    "temperature_c": 84.25, "throttled": True, "relayed": False, "queue_length": 1,
    "stalled_on": "disk", "transport": "stream",
    "work": {"tokens": 100, "compute_s": 2.0, "sync_s": 0.5, "disk_s": 0.1},
}  # fmt: skip
LARGEST_REPORT = 2000  # bytes as JSON, whatever a board says of itself

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def test_a_sound_report_is_kept_as_it_is() -> None:
    assert read_report(REPORT) == REPORT


@given(st.dictionaries(st.sampled_from([*REPORT, "other"]), anything))
def test_any_report_is_small_and_read_again_the_same(report: dict[str, Any]) -> None:
    kept = read_report(report)
    assert kept.keys() <= REPORT.keys()
    assert len(json.dumps(kept, ensure_ascii=False).encode()) <= LARGEST_REPORT
    assert read_report(kept) == kept


@pytest.mark.parametrize("field", REPORT)
@pytest.mark.parametrize("value", ["€" * 500_000, [[1] * 10_000], {"x": "y" * 10_000}, 10**23])
def test_a_field_too_large_is_cut_or_left_out(field: str, value: Any) -> None:
    kept = read_report({**REPORT, field: value})
    assert len(json.dumps(kept, ensure_ascii=False).encode()) <= LARGEST_REPORT


def board(number: int) -> dict[str, Any]:
    """A board that takes as much room as one can."""
    key, address = (
        f"{number:040}",
        "[fe80:0000:0000:0000:0000:0000:0000:0001%enx0123456789ab]:65535",
    )
    report = {**REPORT, **dict.fromkeys(("does", "state", "holder"), "€" * 48), "model": "€" * 128}
    return {"name": "n" * 32, "key": key, "addresses": [address] * 4, "condition": "alive",
            "report": report}  # fmt: skip


class Daemon:
    """Answers with pages of these boards."""

    def __init__(self, boards: list[dict[str, Any]]) -> None:
        self.boards, self.sizes = boards, list[int]()

    def ask(self, kind: str, body: Any = None, timeout_s: float = 0.0) -> dict[str, Any]:
        answer = {"cluster": "desk", **page_of(self.boards, (body or {}).get("from", 0))}
        self.sizes.append(len(json.dumps(answer, ensure_ascii=False).encode()))
        return answer


def test_the_largest_cluster_fits_in_messages() -> None:
    daemon: Any = Daemon([board(number) for number in range(1024)])
    mesh = read_mesh(ask_pages(daemon, *PAGES, 1.0))
    assert len(mesh.boards) == 1024
    assert max(daemon.sizes) < CONTROL_BYTES
    assert 1 < len(daemon.sizes) <= 8


def test_a_small_cluster_is_one_page() -> None:
    daemon: Any = Daemon([board(0), board(1)])
    assert len(ask_pages(daemon, *PAGES, 1.0)["boards"]) == 2
    assert len(daemon.sizes) == 1
    assert page_of([{"x": "y" * PAGE_BYTES}], 0)["boards"]  # one is always told: the pages end
    assert page_of([], 5) == {"boards": []}
