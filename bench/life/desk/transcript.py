"""What a terminal shows of a question and its answer. Pure."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

PROMPT = ">>> "
# Lines that follow an answer: what stopped it.
_NOTE = re.compile(r"^\[(stopped after|the context of) [^\n]*\]$")
ERROR = "error: "
# Line editing asks the terminal to mark pasted text, and not to.
_PASTE = re.compile("\x1b\\[\\?2004[hl]\r?")


@dataclass(frozen=True)
class Shown:
    """An answer as it was seen.

    `text` is the model's; `error` a line of the program's, "" for none. `echo_bytes`: of what
    comes before it.
    """

    text: str
    error: str
    is_complete: bool
    echo_bytes: int
    first_s: float | None = None
    total_s: float = 0.0

    def timed(self, first_s: float | None, total_s: float) -> Shown:
        """With seconds from the question to the first token, and to the next prompt."""
        return dataclasses.replace(self, first_s=first_s, total_s=total_s)


def shown(question: str, text: str) -> Shown:
    """Read what came after `question` was typed; it is complete once the next prompt is there."""
    echo, newline, rest = text.partition("\n")
    if not newline or question not in echo:
        return Shown("", "", False, len(text.encode()))
    marks = _PASTE.match(rest)
    before = len(echo.encode()) + 1 + (marks.end() if marks else 0)
    rest = _PASTE.sub("", rest).replace("\r", "")
    is_complete = rest.endswith("\n" + PROMPT) or rest == PROMPT
    body = rest.removesuffix(PROMPT) if is_complete else rest
    lines = body.removesuffix("\n").split("\n")
    error = next((line for line in lines if line.startswith(ERROR)), "")
    if error:
        lines = lines[: lines.index(error)]
    while lines and _NOTE.match(lines[-1]):
        lines.pop()
    return Shown("\n".join(lines), error, is_complete, before)
