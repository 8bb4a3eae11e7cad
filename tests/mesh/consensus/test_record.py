"""The stored record: a write that is torn anywhere leaves the one before."""

from __future__ import annotations

import pytest
from consensus_board import BEGINNING
from consensus_scenes import configuration

from picoedge.errors import StorageError
from picoedge.mesh.consensus.configuration import Ballot, BoardId, Epoch
from picoedge.mesh.consensus.messages import Vote
from picoedge.mesh.consensus.record import PLACE_BYTES, StoredRecord, encode_stored, newest_record

BOARDS = tuple(BoardId(key, 1) for key in "abc")
BALLOT = Ballot(1, 0, BOARDS[0])
OLD = StoredRecord(configuration(BOARDS))
NEXT = configuration(BOARDS[:2], epoch=Epoch(BEGINNING, 1), ballot=BALLOT, start=9)
NEW = StoredRecord(OLD.known, Vote(BALLOT, NEXT))
LAST = StoredRecord(NEXT)
EMPTY = bytes(PLACE_BYTES)


def test_the_newer_of_two_counts() -> None:
    places = encode_stored(NEW, 2), encode_stored(OLD, 1)
    assert newest_record(places, "here") == (2, NEW)
    assert newest_record((encode_stored(NEW, 2), encode_stored(LAST, 3)), "here") == (3, LAST)


@pytest.mark.parametrize("places", [(b"", b""), (EMPTY, EMPTY)], ids=["no file", "preallocated"])
def test_nothing_was_stored(places: tuple[bytes, bytes]) -> None:
    assert newest_record(places, "here") is None


def test_a_torn_write_leaves_the_record_before() -> None:
    before, new = encode_stored(OLD, 1), encode_stored(LAST, 3)
    length = len(new.rstrip(b"\0"))
    for end in range(0, length, 7):
        places = encode_stored(NEW, 2), new[:end] + before[end:]
        assert newest_record(places, "here") in ((2, NEW), (3, LAST))
    assert newest_record((encode_stored(NEW, 2), new[:40] + before[40:]), "here") == (2, NEW)


def test_a_first_write_that_is_torn_was_never_said() -> None:
    torn = encode_stored(OLD, 1)[:100] + EMPTY[100:]
    assert newest_record((EMPTY, torn), "here") is None


def test_both_damaged_is_an_error_and_no_beginning() -> None:
    torn = encode_stored(OLD, 1)[:100] + EMPTY[100:]
    with pytest.raises(StorageError, match="both records are damaged"):
        newest_record((torn, torn), "here")
