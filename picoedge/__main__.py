"""`python -m picoedge`."""

from __future__ import annotations

import sys

from picoedge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
