"""Processes that are measured: alone, in a clean environment, and ended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import children, machine, speed
from bench.children import BenchError


def child(code: str, **options: Any) -> children.Finished:
    return children.run([sys.executable, "-c", code], **options)


WEIGH_TWO = """
import sys
import bench.decode
from bench.children import run
heavy = {"numpy", "torch", "gguf"} & sys.modules.keys()
assert not heavy, f"a child's peak would begin with that of {heavy}"
small = run([sys.executable, "-c", "print(1)"])
large = run([sys.executable, "-c", "b = bytearray(120 << 20); print(2)"])
print([small.peak_rss_mb, large.peak_rss_mb])
"""


def test_a_child_is_measured_alone() -> None:
    small, large = child(WEIGH_TWO).json()
    assert 2 < small < 60
    assert 100 < large - small < 140


def test_a_child_ends_with_its_answer() -> None:
    assert child("print('said'); print('{\"a\": 1}')").json() == {"a": 1}
    assert child("print('{')\nprint('\"a\": 1}')").json() == {"a": 1}


def test_a_child_sees_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PICOEDGE_KERNELS", "PICOEDGE_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    seen = child("import json, os; print(json.dumps(dict(os.environ)))").json()
    assert not [name for name in seen if name.startswith(("OPENBLAS_", "PICOEDGE_"))]
    assert seen["XDG_CONFIG_HOME"] != str(tmp_path)


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(BenchError, match="no such luck"):
        child("raise SystemExit('no such luck')")
    with pytest.raises(BenchError, match="no JSON"):
        child("print('done')").json()


def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(BenchError, match="too long"):
        child("import sys; sys.stdin = open('/dev/zero'); sys.stdin.read()", timeout_s=0.3)


def test_the_first_byte_is_what_is_timed() -> None:
    code = "import sys, os; os.write(1, b'x'); os.write(2, b'y'); print('z' * 100000)"
    assert 0 < speed.seconds_to_first_byte(["-c", code]) < 30
    with pytest.raises(BenchError, match="nothing to say"):
        speed.seconds_to_first_byte(["-c", "raise SystemExit('nothing to say')"])


def test_the_machine_is_described() -> None:
    about = machine.describe()
    assert about["cores"] >= 1
    assert about["numpy"] == np.__version__
    assert machine.cpu_model("processor: 0\nmodel name\t: A Chip\n") == "A Chip"
    assert machine.commit()
