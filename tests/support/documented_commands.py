"""The command lines that a document shows: in fenced blocks, and in code within its text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
PROMPT = re.compile(r"^(?:\w+)?\$ +")
PROGRAMS = re.compile(r"(?:sudo |\.venv/bin/)*(?:picoedge|make|python|pip|apt|eval)(?= |$)")
SEPARATORS = ("|", "&&", ";")


@dataclass(frozen=True)
class Shown:
    """A command line; `whole`: to be typed as it stands, not merely mentioned."""

    line: str
    whole: bool

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of the line, without its comment."""
        words: list[str] = []
        for word in shlex.split(self.line.replace("\\|", "|"), comments=True):
            if word in SEPARATORS:
                yield words
                words = []
            else:
                words.append(word)
        yield words


def shown_commands(text: str) -> list[Shown]:
    """All command lines of a Markdown text."""
    lines: list[Shown] = []
    for language, block in FENCE.findall(text):
        for line in block.splitlines():
            typed = PROMPT.match(line)
            if typed or (PROGRAMS.match(line) and language in ("", "sh")):
                lines.append(Shown(PROMPT.sub("", line), True))
    codes = CODE.findall(FENCE.sub("", text))
    return lines + [Shown(code, False) for code in codes if PROGRAMS.match(code)]


def named_options(text: str) -> list[str]:
    """Every long option in code within the text."""
    codes = CODE.findall(FENCE.sub("", text))
    return [word for code in codes for word in re.findall(r"(?<!\S)--[a-z][a-z-]+", code)]
