"""TPI-LLM's own `run_llama.main`, with the time of each token on the master.

Run by an interpreter that has its packages, its `src` and `examples` on the path; it imports
nothing of this repository. It prints no figures itself: its streamer is told of every token.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from typing import Any

TIMES: list[float] = []


class Clock:
    """In the place of Transformers' TextStreamer: the prompt comes first, then each token."""

    def __init__(self, *args: Any, **named: Any) -> None:
        pass

    def put(self, value: Any) -> None:
        """A token is chosen."""
        TIMES.append(time.perf_counter())

    def end(self) -> None:
        """That was all."""


def options() -> argparse.Namespace:
    """The varied options, and the settings of their script."""
    parser = argparse.ArgumentParser()
    for name in ("rank", "world_size", "master_port", "length"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("master_ip", "model_path", "prompt"):
        parser.add_argument(f"--{name}", required=True)
    parser.set_defaults(
        model_type="llama", file_port=29600, force_download=False, prefix="", use_gpu=False,
        torch_dist=False, split_bin=False, save_dir="split", seed=42, temperature=1.0, k=0, p=0.9,
        disable_memory_schedule=True, memory_window=2,
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    """Be one of its nodes."""
    given, theirs = options(), importlib.import_module("run_llama")
    theirs.TextStreamer = Clock  # type: ignore[attr-defined]
    theirs.main(given.rank, given)
    print(json.dumps({"times": TIMES}), flush=True)


if __name__ == "__main__":
    main()
