"""The user's own text: files and folders, read in one order, a passage at a time.

    texts = find_texts([Path("notes"), Path("chats.jsonl")])
    for passage in texts.passages(4000):
        passage.text                        # or passage.messages

Each file, and each line of a JSONL file, is a document of its own; a long one is cut into passages.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import DataError
from picoedge.files import reading
from picoedge.train.data.decoding import text_chunks
from picoedge.train.data.records import ChatMessage, FileFaults, read_jsonl

SUFFIXES = (".txt", ".md", ".jsonl")
_JSONL = ".jsonl"
_KINDS = f"text is read from files {', '.join(SUFFIXES)}, and folders of them"
_REMEDIES = {
    ".json": "write one JSON object a line, in a file .jsonl",
    **dict.fromkeys((".gz", ".zip", ".xz", ".bz2", ".zst", ".tar"), "unpack it first"),
    **dict.fromkeys((".pdf", ".docx", ".odt", ".epub", ".html"), "save its text as a file .txt"),
}
_MOST_FILES = 1 << 20
_MOST_TOLD = 5  # paths in a message
_OURS = (".pico", ".run")  # folders of packs and runs, whose logs are no text

OnRead = Callable[[int, int], None]
"""(bytes read, bytes in all)"""


@dataclass(frozen=True)
class TextFile:
    """A file of text, and its size in bytes when it was found."""

    path: Path
    size: int


@dataclass(frozen=True)
class Passage:
    """A piece of a document: text, or a whole conversation.

    `begins` and `ends`: whether it is the document's first piece, and its last.
    """

    text: str
    messages: tuple[ChatMessage, ...] = ()
    begins: bool = True
    ends: bool = True


class Texts:
    """Files of text in their order. `notes` says what was passed over."""

    def __init__(self, files: Sequence[TextFile], notes: Sequence[str] = ()) -> None:
        self.files, self.notes = tuple(files), tuple(notes)
        self.size = sum(file.size for file in files)

    def passages(self, longest: int, on_read: OnRead | None = None) -> Iterator[Passage]:
        """All passages, of at most `longest` characters where they are text.

        A file is read as it is needed, 1 MB at a time. Raises DataError, once all files were read,
        with each file that cannot be used and each line that is broken; StorageError at once.
        """
        faults, done = FileFaults(), 0
        for file in self.files:
            with faults.collected():
                yield from _passages_of(file.path, longest)
            done += file.size
            if on_read is not None:
                on_read(done, self.size)
        faults.raise_if_any()


def find_texts(paths: Sequence[Path]) -> Texts:
    """The files of text at `paths`, each once: as given, and below a folder by name.

    Below a folder, hidden files, other kinds, packs and runs are passed over; links are followed.
    Raises
    DataError where a path is missing, cannot be read, or is of another kind, and where there is no
    text.
    """
    finder = _Finder()
    for path in paths:
        finder.add(path)
    if not finder.files:
        where = ", ".join(str(path) for path in paths[:_MOST_TOLD])
        empty = f"no text in {where}" + (": its files are empty" if finder.empty else "")
        raise DataError(empty, _KINDS)
    return Texts(finder.files, finder.notes())


class _Finder:
    """Files found so far. A file or folder that is reached twice counts once."""

    def __init__(self) -> None:
        self.files: list[TextFile] = []
        self.empty = self._others = self._again = self._results = 0
        self._seen: set[tuple[int, int]] = set()

    def add(self, path: Path) -> None:
        """Add a file or folder that the user named."""
        with reading(path, DataError):
            status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            self._add_folder(path, status)
            return
        suffix = path.suffix.lower()
        if stat.S_ISREG(status.st_mode) and suffix not in SUFFIXES:
            remedy = _REMEDIES.get(suffix, "rename it to .txt if it is plain text")
            raise DataError(f"{path} is not a file of text", f"{_KINDS}: {remedy}")
        self._add_file(path, status)

    def _add_file(self, path: Path, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is no regular file", _KINDS)
        if self._known(status):
            return
        if status.st_size == 0:
            self.empty += 1
            return
        if len(self.files) == _MOST_FILES:
            raise DataError(f"more than {_MOST_FILES} files of text", "join small ones")
        self.files.append(TextFile(path, status.st_size))

    def _add_folder(self, path: Path, status: os.stat_result) -> None:
        folders = [(path, status)]
        while folders:
            path, status = folders.pop()
            if self._known(status):  # also where a link leads back up
                continue
            with reading(path, DataError):
                names = sorted(os.listdir(path))
            inner = []
            for each in (path / name for name in names if not name.startswith(".")):
                try:
                    with reading(each, DataError):
                        status = each.stat()
                except DataError:
                    if each.suffix.lower() in SUFFIXES or not each.is_symlink():
                        raise
                    continue  # a link that leads nowhere, and is no text
                if stat.S_ISDIR(status.st_mode) and each.suffix in _OURS:
                    self._results += 1
                elif stat.S_ISDIR(status.st_mode):
                    inner.append((each, status))
                elif each.suffix.lower() in SUFFIXES:
                    self._add_file(each, status)
                else:
                    self._others += 1
            folders += reversed(inner)

    def _known(self, status: os.stat_result) -> bool:
        place = (status.st_dev, status.st_ino)
        known = place in self._seen
        self._seen.add(place)
        self._again += known and stat.S_ISREG(status.st_mode)
        return known

    def notes(self) -> list[str]:
        """Files that were passed over, a sentence each."""
        counts = (
            (self.empty, "file", "empty"),
            (self._others, "file", f"of another kind than {', '.join(SUFFIXES)}"),
            (self._again, "file", "under another name as well"),
            (self._results, "folder", "a pack or a run of picoedge"),
        )
        return [
            f"passed over: {count} {noun if count == 1 else f'{noun}s'}, {what}"
            for count, noun, what in counts
            if count
        ]


def _passages_of(path: Path, longest: int) -> Iterator[Passage]:
    if path.suffix.lower() != _JSONL:
        yield from cut_passages(text_chunks(path), longest)
        return
    for record in read_jsonl(path, lambda record: record):
        if record.messages:
            yield Passage("", record.messages)
        else:
            yield from cut_passages([record.text], longest)


def cut_passages(chunks: Iterator[str] | Sequence[str], longest: int) -> Iterator[Passage]:
    """A document's text in passages, cut at an empty line, a line's end or a space if there is one.

    Joined they are the text without the blanks around it; a text of blanks alone has none.
    """
    text, begins = "", True
    for chunk in chunks:
        text += chunk
        if begins:
            text = text.lstrip()
        at = 0
        while len(text) - at > 2 * longest:
            cut = _cut(text, at, longest)
            yield Passage(text[at:cut], begins=begins, ends=False)
            at, begins = cut, False
        text = text[at:]
    text, at = text.rstrip(), 0
    while at < len(text):
        cut = len(text) if len(text) - at <= longest else _cut(text, at, longest)
        yield Passage(text[at:cut], begins=begins, ends=cut == len(text))
        at, begins = cut, False


def _cut(text: str, start: int, longest: int) -> int:
    """Place to cut: behind the last empty line, else line's end, else before the last space."""
    for mark, after in (("\n\n", 2), ("\n", 1), (" ", 0)):
        at = text.rfind(mark, start + longest // 2, start + longest)
        if at > 0:
            return min(at + after, start + longest)
    return start + longest
