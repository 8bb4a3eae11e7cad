"""Boards on TAP devices, joined by a switch that shapes each link."""

from __future__ import annotations

from collections.abc import Sequence

from hw.lab.errors import LabError
from hw.lab.links import LinkShape
from hw.lab.namespaces import Namespace


class ShapedNetwork:
    def __init__(self, boards: Sequence[tuple[Namespace, str]], shape: LinkShape) -> None:
        raise LabError("links with a shape are not built yet")

    def shape(self, ways: Sequence[tuple[int, int]], shape: LinkShape) -> None: ...

    def cut(self, ways: Sequence[tuple[int, int]], cut: bool) -> None: ...

    def close(self) -> None: ...
