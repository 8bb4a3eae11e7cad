"""Read the small text files under /sys and /proc in which the kernel reports its state."""

from __future__ import annotations

from pathlib import Path

SYS = Path("/sys")
PROC = Path("/proc")


def read_text(file: Path) -> str:
    """The file's text without outer whitespace; "" where it is absent or cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def read_int(file: Path, base: int = 10) -> int | None:
    """The integer in a file; None where it is absent or holds something else, like `max`."""
    try:
        return int(read_text(file), base)
    except ValueError:
        return None


def read_fields(file: Path) -> dict[str, str]:
    """The lines of a file as {first word: rest}, like those of /proc/meminfo; without the colon."""
    lines = (line.replace(":", " ", 1).split(maxsplit=1) for line in read_text(file).splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2}
