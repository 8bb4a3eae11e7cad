"""Messages and configurations as objects of JSON, and back, with every field checked.

A hostile peer's frame ends as a ProtocolError that names the field; nothing of it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from picoedge.fields import Fields
from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.configuration import (
    MAX_MEMBERS,
    MAX_MICRO_BATCHES,
    MAX_ROUTES,
    MAX_STEP,
    Ballot,
    BoardId,
    Configuration,
    ConfigurationId,
    Epoch,
    Role,
    Route,
    RunGeneration,
    Snapshot,
)

JsonObject = dict[str, Any]

MAX_KEY = 64  # characters; keys in Z85 have 40
MAX_COUNT = (1 << 53) - 1  # JSON numbers up to here are exact in every language
_ALL = (1 << MAX_MICRO_BATCHES) - 1


def encode_message(message: m.ConsensusMessage) -> JsonObject:
    """The message as an object of JSON, with its `kind`."""
    kind = type(message).__name__.lower()
    return {"kind": kind, **{n: _plain(getattr(message, n)) for n in type(message).__slots__}}


def decode_message(body: object, where: str) -> m.ConsensusMessage:
    """The message in an object of JSON from `where`. Raises ProtocolError."""
    fields = Fields(body, where)
    read = _READERS[fields.one_of("kind", _READERS)]
    return read(fields)


def encode_configuration(configuration: Configuration) -> JsonObject:
    """A configuration as an object of JSON."""
    return {name: _plain(getattr(configuration, name)) for name in Configuration.__slots__}


def encode_vote(vote: m.Vote) -> JsonObject:
    """A vote as an object of JSON."""
    return {"ballot": _plain(vote.ballot), "configuration": _plain(vote.configuration)}


def read_configuration(fields: Fields) -> Configuration:
    """The configuration in an object of JSON. Raises the error of `fields`."""
    found = Configuration(
        run=fields.text("run", MAX_KEY),
        epoch=_epoch(fields.object("epoch")),
        ballot=_ballot(fields.object("ballot")),
        members=_boards(fields, "members"),
        voters=_boards(fields, "voters"),
        learners=_boards(fields, "learners"),
        start=fields.integer("start", 0, MAX_STEP),
        source=_board(fields.object("source")),
        holdings=_integers(fields, "holdings", _ALL),
        weights=_integers(fields, "weights", MAX_COUNT),
        shares=_integers(fields, "shares", MAX_COUNT),
        routes=tuple(_route(one) for one in fields.objects("routes", MAX_ROUTES)),
        restores=_if_any(fields, "restores", _snapshot),
    )
    wrong = found.fault()
    if wrong:
        raise fields.fault("members", f"those of a configuration: {wrong}")
    return found


def _plain(value: Any) -> Any:
    """Named tuples and data classes become objects, other tuples lists."""
    if isinstance(value, Configuration):
        return encode_configuration(value)
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        if names is not None:
            return {name: _plain(part) for name, part in zip(names, value, strict=True)}
        return [_plain(part) for part in value]
    return value.value if isinstance(value, Role) else value


def _if_any(fields: Fields, name: str, read: Callable[[Fields], Any]) -> Any:
    return None if fields.values.get(name) is None else read(fields.object(name))


def _integers(fields: Fields, name: str, most: int) -> tuple[int, ...]:
    values = fields.array(name, MAX_MEMBERS)
    if not all(type(value) is int and 0 <= value <= most for value in values):
        raise fields.fault(name, f"a list of integers from 0 to {most}")
    return tuple(values)


def _board(fields: Fields) -> BoardId:
    return BoardId(fields.text("key", MAX_KEY), fields.integer("incarnation", 0, MAX_COUNT))


def _boards(fields: Fields, name: str) -> tuple[BoardId, ...]:
    return tuple(_board(one) for one in fields.objects(name, MAX_MEMBERS))


def _route(fields: Fields) -> Route:
    ranks = (fields.integer(name, 0, MAX_MEMBERS - 1) for name in Route._fields)
    return Route(*ranks)


def _generation(fields: Fields) -> RunGeneration:
    return RunGeneration(fields.integer("number", 0, MAX_COUNT), _board(fields.object("maker")))


def _epoch(fields: Fields) -> Epoch:
    generation = _generation(fields.object("generation"))
    return Epoch(generation, fields.integer("number", 0, MAX_COUNT))


def _ballot(fields: Fields) -> Ballot:
    round_, attempt = (fields.integer(name, 0, MAX_COUNT) for name in ("round", "attempt"))
    return Ballot(round_, attempt, _board(fields.object("board")))


def _identity(fields: Fields) -> ConfigurationId:
    return ConfigurationId(_epoch(fields.object("epoch")), _ballot(fields.object("ballot")))


def _snapshot(fields: Fields) -> Snapshot:
    step = fields.integer("step", 0, MAX_STEP)
    made_by = _if_any(fields, "made_by", _identity)
    return Snapshot(_generation(fields.object("generation")), step, made_by)


def read_vote(fields: Fields) -> m.Vote:
    """The vote in an object of JSON."""
    configuration = read_configuration(fields.object("configuration"))
    return m.Vote(_ballot(fields.object("ballot")), configuration)


def _standing(fields: Fields) -> m.Standing:
    state = _snapshot(fields.object("state"))
    return m.Standing(state, fields.get("holds_sum", bool), fields.integer("finished", 0, _ALL))


def _role(fields: Fields) -> Role:
    return Role(fields.one_of("role", [role.value for role in Role]))


def _beat(fields: Fields) -> m.Beat:
    age, uplink, progress = (
        fields.integer(name, 0, MAX_COUNT) for name in ("age", "uplink", "progress")
    )
    hears = fields.texts("hears", MAX_MEMBERS, MAX_KEY)
    known = _if_any(fields, "known", _identity)
    return m.Beat(known, _role(fields), age, uplink, progress, hears)


def _instance(fields: Fields) -> Epoch:
    return _epoch(fields.object("instance"))


def _votes(fields: Fields) -> tuple[Epoch, Ballot]:
    return _instance(fields), _ballot(fields.object("ballot"))


def _offer(fields: Fields) -> tuple[Epoch, Ballot, Configuration]:
    return (*_votes(fields), read_configuration(fields.object("configuration")))


def _promise(fields: Fields) -> m.Promise:
    return m.Promise(
        *_votes(fields),
        _role(fields),
        _if_any(fields, "standing", _standing),
        _if_any(fields, "vote", read_vote),
        _if_any(fields, "checkpoint", _snapshot),
    )


def _surveyed(fields: Fields) -> m.Surveyed:
    return m.Surveyed(
        _generation(fields.object("generation")),
        _if_any(fields, "known", read_configuration),
        _if_any(fields, "latest", _snapshot),
    )


_READERS: dict[str, Callable[[Fields], m.ConsensusMessage]] = {
    "beat": _beat,
    "configured": lambda f: m.Configured(read_configuration(f.object("configuration"))),
    "request": lambda f: m.Request(f.get("leave", bool), f.get("leaves_one", bool)),
    "suspect": lambda f: m.Suspect(_instance(f), _boards(f, "boards"), f.get("failed", bool)),
    "agree": lambda f: m.Agree(_instance(f)),
    "unheard": lambda f: m.Unheard(f.text("by", MAX_KEY)),
    "prepare": lambda f: m.Prepare(*_votes(f), _boards(f, "suspects")),
    "promise": _promise,
    "accept": lambda f: m.Accept(*_offer(f), _boards(f, "promisers")),
    "accepted": lambda f: m.Accepted(*_offer(f)),
    "refused": lambda f: m.Refused(*_votes(f)),
    "survey": lambda f: m.Survey(_generation(f.object("generation"))),
    "surveyed": _surveyed,
}
