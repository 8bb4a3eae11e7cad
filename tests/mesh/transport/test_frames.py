"""Whatever bytes come: they are a header or a message, whole and in bounds, or a ProtocolError."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import ProtocolError
from picoedge.mesh.transport.frames import (
    HEADER,
    PREFIX_BYTES,
    U32,
    V1_TAGS,
    Dtype,
    Header,
    Kind,
    ShapeBounds,
    pack,
    pack_prefix,
    unpack,
)
from picoedge.mesh.transport.limits import CONTROL_BYTES
from picoedge.mesh.transport.messages import (
    CONTROL_DEPTH,
    TooLongError,
    control,
    read_control,
)

CONTROL_HEADER = control("x", {})[0]
u32 = st.integers(0, U32)
headers = st.builds(
    Header,
    st.sampled_from(Kind),
    u32,
    u32,
    st.sampled_from(Dtype),
    st.lists(st.integers(0, 1 << 12), max_size=3).map(tuple),
    u32,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 64) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(headers)
def test_a_header_comes_back_as_it_was(header: Header) -> None:
    assert len(pack(header)) == HEADER.size == 30
    assert unpack(pack(header)) == header
    assert unpack(memoryview(pack(header))) == header


@given(headers, st.integers(0, 255))
def test_a_tag_comes_back_as_it_was(header: Header, tag: int) -> None:
    header = dataclasses.replace(header, kind=Kind.DATA, tag=tag)
    prefix = pack_prefix(header)
    assert len(prefix) == PREFIX_BYTES == 32
    assert unpack(prefix) == header


@given(headers, st.sampled_from(V1_TAGS))
def test_version_1_wrote_a_tag_as_the_kind(header: Header, tag: int) -> None:
    header = dataclasses.replace(header, kind=Kind.DATA, tag=tag)
    prefix = pack_prefix(header, version=1)
    assert (prefix[2], prefix[3], prefix[30:]) == (1, tag, bytes(2))
    assert unpack(prefix) == unpack(prefix[:30]) == header
    with pytest.raises(ProtocolError, match="this board speaks 2"):
        unpack(prefix, versions=(2,))


@pytest.mark.parametrize("version", [1, 2])
def test_only_an_array_of_the_program_has_a_tag(version: int) -> None:
    raw = bytearray(pack_prefix(Header(Kind.SUM), version))
    assert unpack(raw) == Header(Kind.SUM)
    for at in (30, 31):
        raw[at] = 1
        with pytest.raises(ProtocolError, match="with tag"):
            unpack(raw)
        raw[at] = 0


@given(st.binary(max_size=64))
def test_random_bytes_are_a_header_or_refused(raw: bytes) -> None:
    check_header(raw)


@given(headers, st.integers(0, 29), st.integers(0, 255))
def test_mutated_headers_are_a_header_or_refused(header: Header, at: int, byte: int) -> None:
    raw = bytearray(pack(header))
    raw[at] = byte
    check_header(bytes(raw))


def check_header(raw: bytes) -> None:
    bounds = ShapeBounds(side=1 << 12, elements=1 << 20)
    try:
        header = unpack(raw, bounds)
    except ProtocolError:
        return
    assert pack_prefix(header, raw[2])[: len(raw)] == raw
    assert max(header.shape, default=0) <= bounds.side


@pytest.mark.parametrize("size", [0, 1, 29, 31, 4096])
def test_a_header_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="bytes instead of 30"):
        unpack(bytes(size))


def test_a_shape_out_of_bounds_is_refused() -> None:
    raw = pack(Header(Kind.SUM, shape=(1 << 10, 1 << 11)))
    assert unpack(raw, ShapeBounds(1 << 11, 1 << 21)).shape == (1 << 10, 1 << 11)
    for bounds in (ShapeBounds(1 << 10, 1 << 30), ShapeBounds(1 << 11, 1 << 20)):
        with pytest.raises(ProtocolError, match="out of bounds"):
            unpack(raw, bounds)


def test_another_version_is_told_what_to_do() -> None:
    raw = bytearray(pack(Header(Kind.SUM)))
    raw[2] += 1
    with pytest.raises(ProtocolError, match="same picoedge on all boards"):
        unpack(bytes(raw))


@given(st.dictionaries(texts, values, max_size=4))
def test_a_control_message_comes_back_as_it_was(body: dict[str, object]) -> None:
    assert read_control(control("status", body))[1:] == ("status", body)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_random_frames_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        read_control(frames)


@given(st.binary(max_size=200))
def test_random_bodies_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_control([CONTROL_HEADER, raw])


@given(st.integers(0, 1000), st.binary(min_size=1, max_size=3))
def test_mutated_control_messages_are_whole_or_refused(at: int, byte: bytes) -> None:
    frames = control("status", {"boards": [1, 2.5, "π", None, True], "of": {"a": {"b": []}}})
    raw = bytearray(frames[1])
    raw[at % len(raw) : at % len(raw) + 1] = byte
    try:
        _, kind, body = read_control([frames[0], bytes(raw)])
    except ProtocolError:
        return
    assert read_control(control(kind, body))[1:] == (kind, body)


def test_a_message_as_deep_as_allowed_is_read() -> None:
    deep: list[object] = []
    for _ in range(CONTROL_DEPTH - 4):
        deep = [deep]
    assert read_control(control("x", {"a": deep}))[1:] == ("x", {"a": deep})


BODY = '{"kind": "x", "body": {"a": %s}}'


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        '{"kind": "x"}',
        '{"kind": "x", "body": []}',
        '{"kind": "X Y", "body": {}}',
        '{"kind": 1, "body": {}}',
        '{"kind": "x", "body": {}, "more": 1}',
        '{"kind": "x", "kind": "x", "body": {}}',
        '{"kind": "x", "body": {"a": 1, "a": 2}}',
        '{"kind": "x", "body": {}} ...',
        BODY % "NaN",
        BODY % "-Infinity",
        BODY % "1e999",
        BODY % ("9" * 5000),
        BODY % '"\\ud800"',
        BODY % '{"\\udfff": 1}',
        BODY % ("[" * CONTROL_DEPTH + "]" * CONTROL_DEPTH),
        BODY % ("[" * 100_000 + "]" * 100_000),
        BODY % ('{"a":' * 100_000),
        BODY % '"%s"' % ("a" * CONTROL_BYTES),
    ],
    ids=lambda text: text[:40],
)
def test_a_text_that_is_no_control_message_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        read_control([CONTROL_HEADER, text.encode()])


def test_other_encodings_and_headers_are_refused() -> None:
    message = json.dumps({"kind": "x", "body": {"a": "ä"}}, ensure_ascii=False)
    assert read_control([CONTROL_HEADER, message.encode()])
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        with pytest.raises(ProtocolError):
            read_control([CONTROL_HEADER, message.encode(encoding)])
    for header in (Header(Kind.SUM), Header(Kind.CONTROL, epoch=1)):
        with pytest.raises(ProtocolError):
            read_control([pack(header), message.encode()])


def test_a_message_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(TooLongError, match="the limit"):
        control("x", {"a": "a" * CONTROL_BYTES})


def test_a_message_of_too_many_values_is_refused_before_it_is_made() -> None:
    text = b'{"kind":"x","body":{"a":[' + b",".join([b"[]"] * 200_000) + b"]}}"
    with pytest.raises(ProtocolError, match="more than 65536 values"):
        read_control([CONTROL_HEADER, text])
