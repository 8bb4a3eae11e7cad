"""Frames, tickets, encoded values and sealed streams."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np

from fuzz.inputs import of_bytes
from fuzz.target import Run, Target
from picoedge.mesh.group.codecs import codecs_for
from picoedge.mesh.transport.connection import ConnectionEnded
from picoedge.mesh.transport.frames import (
    Header,
    Kind,
    ShapeBounds,
    pack,
    pack_prefix,
    unpack,
)
from picoedge.mesh.transport.sealed_stream import Cipher, Seal, SealedStream, Ticket, new_key

# -- frames --------------------------------------------------------------------------------------


def _header(folder: Path) -> Run:
    bounds = ShapeBounds(4096, 1 << 20)
    return lambda data: str(unpack(data, bounds))


def _header_samples() -> list[bytes]:
    headers = [
        Header(Kind.SUM_PART, 7, 3, shape=(4, 576), extra=32),
        Header(Kind.DATA, 7, 3, shape=(1, 2), tag=8),
    ]
    return [*(pack_prefix(header) for header in headers), pack(headers[0]), pack(headers[0], 1)]


def _ticket(folder: Path) -> Run:
    return lambda data: Ticket.from_bytes(data)


def _codec(folder: Path) -> Run:
    """The first byte says which codec and how many values."""
    codecs = [codecs_for(wire, 64) for wire in ("f64", "f32", "f16", "q8")]
    out = np.empty(8192 + 64)

    def run(data: bytes) -> None:
        which = data[0] if data else 0
        count = (64, 256, 8192, 8192 + 64)[which >> 2 & 3]
        for codec in (codecs[which & 3].part, codecs[which & 3].whole):
            codec.decode(memoryview(data[1:]), out[:count])

    return run


def _codec_samples() -> list[bytes]:
    rng, samples = np.random.default_rng(1), []
    for number, wire in enumerate(("f64", "f32", "f16", "q8")):
        for size, count in enumerate((64, 256, 8192, 8192 + 64)):
            body = memoryview(bytearray(8 * count + 64))
            values = rng.normal(size=count).astype(np.float32).astype(np.float64)
            nbytes = codecs_for(wire, 64).part.encode(values, body)
            samples.append(bytes([number | size << 2]) + bytes(body[:nbytes]))
    return samples


def _stream(folder: Path) -> Run:
    """Bytes as they come over a sealed stream's socket.

    The first byte: 1 seals the others as one message, 2 resets the connection after them.
    """

    def run(data: bytes) -> None:
        key = new_key()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours = listener.accept()[0]
        with ours, theirs, suppress(ConnectionEnded):
            theirs.settimeout(0)
            out, into = (Seal(Cipher.CHACHA20_POLY1305, each) for each in (new_key(), key))
            stream = SealedStream(ours, out, into, 4096)
            how, raw = data[:1], data[1:]
            if how == b"\1":
                sealed = bytearray(len(raw) + 16)
                Seal(Cipher.CHACHA20_POLY1305, key).close(raw, memoryview(sealed))
                raw = len(sealed).to_bytes(4, "little") + bytes(sealed)
            with suppress(BlockingIOError):
                theirs.send(raw)
            while stream.take() is not None:
                pass
            if how == b"\2":
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                theirs.close()
            else:
                theirs.shutdown(socket.SHUT_WR)
            while stream.take() is not None:
                pass

    return run


FRAMES = (
    Target(
        "frame-header",
        _header,
        **of_bytes(_header_samples),
        modules=("mesh/transport/frames.py:unpack",),
        weight=12,
    ),
    Target(
        "ticket",
        _ticket,
        modules=("mesh/transport/sealed_stream.py:Ticket.from_bytes",),
        **of_bytes(lambda: [Ticket.new(9, Cipher.AES_256_GCM).to_bytes()]),
        weight=4,
    ),
    Target(
        "codec",
        _codec,
        **of_bytes(_codec_samples),
        modules=("mesh/group/codecs.py:F48Codec.decode,FloatCodec.decode,Q8Codec.decode,_check",),
        weight=4,
    ),
    Target(
        "stream",
        _stream,
        **of_bytes(
            lambda: [
                b"\1hello",
                b"\1hello\0rest",
                b"\2" + bytes(20),
                b"\0" + (20).to_bytes(4, "little") + bytes(20),
                b"\0" + bytes(5000),
            ]
        ),
        modules=(
            "mesh/transport/sealed_stream.py:Seal.open,Seal._nonce,SealedStream.take,SealedStream._open,SealedStream._receive",
        ),
        weight=3,
    ),
)
