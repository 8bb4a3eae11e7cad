"""Each transport of a link."""

from __future__ import annotations

import pytest
from group_links import TRANSPORTS

from picoedge.mesh.group.peer_link import TransportChoice


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> TransportChoice:
    wish: TransportChoice = request.param
    return wish
