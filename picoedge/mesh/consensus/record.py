"""The record a board keeps: what it knows to be chosen, and what it accepts after that.

Both are in *one* record, because a vote means nothing without the configuration whose voters are
asked. Two places on the disk are written by turns, each with a checksum: a write that is torn by a
power cut leaves the record before it whole.

Without a record, a quorum that reboots together forgets what it chose, and chooses again.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

from picoedge.errors import PicoedgeError, StorageError
from picoedge.fields import Fields, parse_json
from picoedge.mesh.consensus.codec import (
    encode_configuration,
    encode_vote,
    read_configuration,
    read_vote,
)
from picoedge.mesh.consensus.configuration import Configuration
from picoedge.mesh.consensus.messages import Vote

PLACE_BYTES = 128 << 10  # of each place: preallocated, so that a full disk costs no board its vote
_HEAD = struct.Struct("<8sQI16s")  # magic, sequence, bytes of JSON, their blake2b with the sequence
_MAGIC = b"pe-vote1"


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """The newest configuration known to be chosen, and the vote for the one after it."""

    known: Configuration
    vote: Vote | None = None


def encode_stored(record: StoredRecord, sequence: int) -> bytes:
    """The bytes of a place, `PLACE_BYTES` of them; to be written to place `sequence % 2`."""
    vote = None if record.vote is None else encode_vote(record.vote)
    body = {"known": encode_configuration(record.known), "vote": vote}
    data = json.dumps(body, separators=(",", ":")).encode()
    head = _HEAD.pack(_MAGIC, sequence, len(data), _checksum(sequence, data))
    return (head + data).ljust(PLACE_BYTES, b"\0")


def newest_record(places: tuple[bytes, bytes], where: str) -> tuple[int, StoredRecord] | None:
    """The whole record with the largest sequence number, and that number; None: never stored.

    Raises StorageError where neither place is whole though both were written: a board that goes on
    without its vote may vote twice.
    """
    whole = [found for found in (_read(place, where) for place in places) if found]
    if whole:
        return max(whole, key=lambda found: found[0])
    if all(any(place) for place in places):
        raise StorageError(
            f"{where}: both records are damaged", "leave the run and join it again on this board"
        )
    return None


def _checksum(sequence: int, data: bytes) -> bytes:
    return hashlib.blake2b(sequence.to_bytes(8, "little") + data, digest_size=16).digest()


def _read(place: bytes, where: str) -> tuple[int, StoredRecord] | None:
    """None where a place is empty, torn or damaged."""
    if len(place) < _HEAD.size:
        return None
    magic, sequence, nbytes, checksum = _HEAD.unpack_from(place)
    data = place[_HEAD.size : _HEAD.size + nbytes]
    if magic != _MAGIC or checksum != _checksum(sequence, data):
        return None
    try:
        fields = Fields(parse_json(data), where, StorageError)
        vote = None if fields.values.get("vote") is None else read_vote(fields.object("vote"))
        return sequence, StoredRecord(read_configuration(fields.object("known")), vote)
    except (PicoedgeError, ValueError, RecursionError):
        return None  # whole, but of another version of picoedge
