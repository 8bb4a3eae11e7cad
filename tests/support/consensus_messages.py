"""A message of each kind."""

from __future__ import annotations

from consensus_board import BEGINNING
from consensus_scenes import configuration

from picoedge.mesh.consensus import messages as m
from picoedge.mesh.consensus.configuration import (
    Ballot,
    BoardId,
    ConfigurationId,
    Epoch,
    Role,
    Snapshot,
)

BOARDS = tuple(BoardId(key, 3) for key in "abc")
BALLOT = Ballot(2, 0, BOARDS[1])
INSTANCE = Epoch(BEGINNING, 4)
CHOSEN = configuration(BOARDS, epoch=INSTANCE, ballot=BALLOT, start=7)
STATE = Snapshot(BEGINNING, 7, ConfigurationId(INSTANCE, BALLOT))
MESSAGES: list[m.ConsensusMessage] = [
    m.Beat(CHOSEN.identity, Role.WITNESS, 5, 1 << 30, 99, ("a", "c")),
    m.Beat(None, Role.TRAINER, 0, 0, 0),
    m.Configured(CHOSEN),
    m.Request(leave=True),
    m.Suspect(INSTANCE, BOARDS, True),
    m.Agree(INSTANCE),
    m.Unheard("a"),
    m.Prepare(INSTANCE, BALLOT, BOARDS[:1]),
    m.Promise(
        INSTANCE, BALLOT, Role.TRAINER, m.Standing(STATE, True, 5), m.Vote(BALLOT, CHOSEN), STATE
    ),
    m.Promise(INSTANCE, BALLOT, Role.WITNESS, None, None, None),
    m.Accept(INSTANCE, BALLOT, CHOSEN, BOARDS),
    m.Accepted(INSTANCE, BALLOT, CHOSEN),
    m.Refused(INSTANCE, BALLOT),
    m.Survey(BEGINNING),
    m.Surveyed(BEGINNING, CHOSEN, STATE),
    m.Surveyed(BEGINNING, None, None),
]
