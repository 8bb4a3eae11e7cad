"""Messages as JSON: whole there and back, and refused where a field is not what belongs there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from consensus_messages import BALLOT, CHOSEN, INSTANCE, MESSAGES
from consensus_scenes import configuration
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import ProtocolError
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.codec import decode_message, encode_message
from picoedge.mesh.consensus.configuration import MAX_MEMBERS, MAX_ROUTES, BoardId, Route
from picoedge.mesh.transport.limits import CONTROL_BYTES

KINDS = [type(message).__name__ for message in MESSAGES]


def as_json(message: m.ConsensusMessage) -> Any:
    return json.loads(json.dumps(encode_message(message)))


@pytest.mark.parametrize("message", MESSAGES, ids=KINDS)
def test_there_and_back(message: m.ConsensusMessage) -> None:
    assert decode_message(as_json(message), "a board") == message


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a value of JSON."""
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    return [path, *(found for key, one in inside for found in paths(one, (*path, key)))]


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=70), st.just([]),
    st.just({}), st.just(-1), st.just(1 << 70), st.just([{}]), st.just("x" * 5000),
)  # fmt: skip


@given(st.data())
def test_odd_values_are_refused_or_harmless(data: st.DataObject) -> None:
    body = as_json(data.draw(st.sampled_from(MESSAGES)))
    path = data.draw(st.sampled_from([path for path in paths(body) if path]))
    place = body
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()):
        place[path[-1]] = data.draw(ODD)
    else:
        del place[path[-1]]
    refused = ""
    try:
        found = decode_message(body, "a board")
    except ProtocolError as error:
        refused = str(error)
    assert "\n" not in refused
    assert len(refused) < 300
    assert refused or decode_message(as_json(found), "a board") == found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"members": []}, "members are missing"),
        ({"holdings": [0]}, "not every member has its part"),
        ({"holdings": [3, 1, 0]}, "a micro-batch is held twice"),
        ({"voters": []}, "a member has no vote"),
        ({"learners": [{"key": "a", "incarnation": 3}]}, "a member is a learner too"),
        ({"source": {"key": "z", "incarnation": 3}}, "not every member has its part"),
        ({"routes": [{"sender": 0, "receiver": 1, "relay": 5}]}, "no other member"),
        ({"start": -1}, "an integer from 0"),
    ],
)
def test_a_configuration_that_cannot_be(change: dict[str, Any], says: str) -> None:
    body = as_json(m.Configured(CHOSEN))
    body["configuration"].update(change)
    with pytest.raises(ProtocolError, match=says):
        decode_message(body, "a board")


def test_the_largest_message_is_bounded() -> None:
    boards = tuple(BoardId(f"{i:064}", (1 << 53) - 1) for i in range(MAX_MEMBERS))
    many = tuple(Route(i % 60, i % 60 + 1, i % 60 + 2) for i in range(MAX_ROUTES))
    largest = configuration(boards, epoch=INSTANCE, ballot=BALLOT)
    body = encode_message(m.Accept(INSTANCE, BALLOT, largest, boards))
    body["configuration"]["routes"] = [dict(route._asdict()) for route in many]
    data = json.dumps(body)
    assert len(data) < CONTROL_BYTES / 8
    decode_message(json.loads(data), "a board")
    body["promisers"].append(body["promisers"][0])
    with pytest.raises(ProtocolError, match="promisers is not a list of at most 64"):
        decode_message(body, "a board")
