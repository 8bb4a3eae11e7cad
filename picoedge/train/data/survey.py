"""The first reading of a run's text: its size, its faults, and a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from picoedge.errors import DataError
from picoedge.progress import Progress, no_progress
from picoedge.train.data.order import mix
from picoedge.train.data.texts import Passage, Texts

# Byte pair encoding of 8 MB holds about 150 MB, and more text changes few pieces.
SAMPLE_CHARACTERS = 8 << 20
_SHORTEST, _LONGEST = 400, 16_000  # characters of a passage
_PASSAGES = 200  # that a small text is cut into at least, so that some can be held out


@dataclass(frozen=True)
class TextSurvey:
    """Counts of a text, and characters of it that were drawn by the seed."""

    passages: int
    documents: int
    characters: int
    conversations: int
    sample: tuple[str, ...]


def passage_characters(nbytes: int) -> int:
    """The longest passage of a text of `nbytes` in all."""
    return max(_SHORTEST, min(_LONGEST, nbytes // _PASSAGES))


def survey_texts(texts: Texts, seed: int, progress: Progress = no_progress) -> TextSurvey:
    """Read all of it once. Raises DataError with all that is wrong, StorageError."""
    share = min(1.0, SAMPLE_CHARACTERS / max(1, texts.size))
    passages = documents = characters = conversations = 0
    sample, room = [], SAMPLE_CHARACTERS

    def told(done: int, total: int) -> None:
        progress("reading the text", done, total)

    for passage in texts.passages(passage_characters(texts.size), told):
        contents = list(_contents(passage))
        size = sum(map(len, contents))
        if room > 0 and mix(mix(seed) ^ passages) < share * 2.0**64:
            sample += contents
            room -= size
        passages, characters = passages + 1, characters + size
        documents += passage.begins
        conversations += bool(passage.messages)
    progress("", 0, 0)
    if not characters:
        where = ", ".join(str(file.path) for file in texts.files[:3])
        raise DataError(f"no text in {where}: blanks alone", "give text to train on")
    return TextSurvey(passages, documents, characters, conversations, tuple(sample))


def _contents(passage: Passage) -> Iterator[str]:
    if passage.messages:
        yield from (message["content"] for message in passage.messages)
    else:
        yield passage.text
