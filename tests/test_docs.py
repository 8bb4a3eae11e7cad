"""What the documents name is there: files, and the functions and classes of a path's hops."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "picoedge", ROOT)
DOCUMENTS = ["ARCHITECTURE.md", "README.md", "SECURITY.md", "hw/lab/README.md"]
FILE = re.compile(r"(?<![\w.*{}/-])((?:\w+/)+\w+\.(?:py|c|h|md))\b")
HOP = re.compile(r"^ {4}(\w+)\.(\w+) +(\w+/[\w/]+\.py)", re.M)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    names = FILE.findall((ROOT / document).read_text(encoding="utf-8"))
    missing = [name for name in names if not any((folder / name).is_file() for folder in FOLDERS)]
    assert missing == []


def test_hops_of_a_path_are_defined_where_they_are_said_to_be() -> None:
    hops = HOP.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert len(hops) >= 3
    for owner, method, file in hops:
        source = (ROOT / "picoedge" / file).read_text(encoding="utf-8")
        assert re.search(rf"^class {owner}\b", source, re.M), f"{owner} in {file}"
        assert re.search(rf"^    def {method}\b", source, re.M), f"{owner}.{method} in {file}"
