"""Where tests keep models between sessions."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where models stay between sessions: $PICOEDGE_TEST_CACHE or ~/.cache/picoedge-tests."""
    return Path(os.environ.get("PICOEDGE_TEST_CACHE") or Path.home() / ".cache/picoedge-tests")
