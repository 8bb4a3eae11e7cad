"""The undisturbed text: a process on no board that answers the same conversation alone.

`python -m bench.life.verdict.reference PACK N_CTX` reads {"messages": [...], "n": N} a line and
writes {"text": ...} a line. Sums are exact, so one board says what many say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.children import ROOT, BenchError, clean_environment

Message = dict[str, str]


class Reference:
    """The process, asked from here."""

    def __init__(self, pack: Path, n_ctx: int, scratch: Path) -> None:
        words = [sys.executable, "-m", "bench.life.verdict.reference", str(pack), str(n_ctx)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=clean_environment(os.environ, scratch), start_new_session=True,
        )  # fmt: skip

    def answer(self, messages: Sequence[Message], n: int) -> str:
        """What comes after these messages, greedily. Raises BenchError."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"messages": list(messages), "n": n}) + "\n")
            stdin.flush()
            line = stdout.readline()
            return str(json.loads(line)["text"])
        except (OSError, ValueError) as error:
            raise BenchError(f"the undisturbed text cannot be had: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # it has ended by itself
                stream.close()


def main(pack: str, n_ctx: int) -> None:
    """Answer until stdin ends."""
    from picoedge.engine.open import load_model, open_pack, open_session
    from picoedge.engine.options import OpenOptions

    options = OpenOptions(threads=1, n_ctx=n_ctx, sampling={"temperature": 0.0})
    opened = open_pack(pack, options)
    prompter = opened.prompter
    session = open_session(opened, load_model)
    for line in sys.stdin:
        request: Any = json.loads(line)
        prompt = prompter.chat(request["messages"])
        text = "".join(session.generate(prompt, max_tokens=int(request["n"])))
        print(json.dumps({"text": text}), flush=True)


if __name__ == "__main__":
    os.nice(10)  # what it takes is no part of any life
    main(sys.argv[1], int(sys.argv[2]))
