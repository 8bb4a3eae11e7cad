"""A job's view of the boards: what they can do, their shards on disk, and reservations."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from picoedge.errors import BoardLostError, BoardRefusedError, MeshError, ProtocolError
from picoedge.fields import Fields
from picoedge.jobs.measured_links import MeasuredLinks
from picoedge.jobs.spec import VERSION_1, SliceKey, loaded_for, read_kept
from picoedge.jobs.status import PAGES, PRESENT
from picoedge.jobs.stragglers import Looks
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.cluster_folder import find_local
from picoedge.mesh.identity.roster import MAX_ENTRIES
from picoedge.mesh.transfer.donor import OFFER
from picoedge.mesh.transfer.donor_client import read_offer
from picoedge.mesh.transport.client import Client, ask_pages
from picoedge.planner.topology import KEY_CHARS, BoardFacts, LinkFacts, Topology, board_from_json
from picoedge.sanitize import one_line
from picoedge.store.shards import HeldShards, Slice, held_shards

if TYPE_CHECKING:
    from picoedge.engine.options import OpenOptions
    from picoedge.mesh.group.peer_link import TransportChoice
    from picoedge.mesh.identity.identity import Identity
    from picoedge.mesh.transport.curve import Context
    from picoedge.mesh.transport.messages import Body
    from picoedge.store.pack.reader import Pack

    Tell = Callable[[str], None]

# A pair of boards that could not reach each other is not tried again for so long.
UNLINKED_S = 600.0
QUESTION_S = 2.0  # a daemon that runs answers in milliseconds; this allows for a stalled card
_LOOK_S = 0.5  # as a look for boards comes before an answer
_MEASURING_LOOK_S = 0.2  # between two questions to a board that measures itself
OFFER_S = 10.0  # a daemon may have to read the pack's manifest first
# For boards that measure themselves, as they were just set up: all together, as a session begins.
MEASURING_S = 60.0
# A queue may be as long as the session before: a day, so that a forgotten one ends at last.
QUEUE_S = 24 * 3600.0
_ROOM = ("disk_free_bytes", "disk_free_files")
_FACTS = dataclasses.fields(BoardFacts)


@dataclass(frozen=True)
class BoardHandle:
    """A board that answers: how it is reached, what it can do, and the link to it."""

    key: str
    name: str
    address: str
    facts: BoardFacts
    link: LinkFacts
    client: Client
    unreached: frozenset[str] = frozenset()  # keys of boards that it cannot reach, as it says
    kept: SliceKey | None = None  # the slice that it has loaded still


class BoardDirectory:
    """Connections to the daemons of all boards that answer; this board comes first.

    `tell` receives lines for the user. Call `close` at the end.
    """

    def __init__(
        self,
        context: Context,
        identity: Identity,
        tell: Tell,
        transport: TransportChoice = "auto",
    ) -> None:
        from picoedge.engine.fit import fixed_bytes
        from picoedge.host.reclaim import trim
        from picoedge.host.resources import REFAULT_BYTES
        from picoedge.mesh.transport.sealed_stream import ciphers

        self.context, self.identity, self._tell = context, identity, tell
        self.session = secrets.token_hex(8)  # by which boards know that it is this one
        self.handles: dict[str, BoardHandle] = {}
        self._unlinked: dict[frozenset[str], float] = {}  # pairs of keys, until when (monotonic)
        self._incarnation = 0  # of this board's daemon
        self.has_taken = False
        self._measuring_s = MEASURING_S  # left to wait for boards that measure themselves
        self._links = MeasuredLinks(identity.folder)
        self._looks = Looks()
        self._left_out: set[str] = set()  # keys of boards that the user was told are left out
        if transport != "zeromq":
            ciphers()  # loads what seals streams, so that it is counted
        trim()
        self._fixed_bytes = fixed_bytes() + REFAULT_BYTES  # of this process without a model

    def refresh(
        self, excluded: frozenset[str] = frozenset(), *, also_taken: bool = True
    ) -> Topology:
        """Reconnect to every reachable board but the excluded keys; return their facts and links.

        This board is first, the others are sorted by name, so that `--tensor-split` means the
        same boards every time. Without `also_taken` boards that run sessions of other boards are
        left out, for which a new session would wait; whether there are any says `has_taken`.

        Raises BoardLostError, which names this board, if no daemon runs here.
        """
        self.close()
        self._looks = Looks()
        own = self._own()
        self._links.begin(own, QUESTION_S)
        boards = ask_pages(own, *PAGES, QUESTION_S)["boards"]  # the own daemon has checked them
        own.name = next((each["name"] for each in boards if each["key"] == own.key), own.name)
        self._add(own, own.key, str(own.address), LinkFacts(0.0, 1e12), QUESTION_S)
        others = _others(boards, {own.key, *excluded})
        taken = [] if also_taken else [each for each in others if self._is_taken(each, own.name)]
        self.has_taken = bool(taken)
        for board in others:
            if board not in taken:
                self._try(board, QUESTION_S)
        self._links.save()
        self._measuring_s = 0.0  # a recovery does without them
        return self.cluster()

    def look(
        self, excluded: frozenset[str], wanted: Collection[str] | None = None
    ) -> tuple[set[str], set[str]]:
        """Connect to boards that have come since and are free, but for the excluded keys.

        To those `wanted` alone, if it is given.

        Those that had answered before, and are not excluded, are measured again once in a while,
        by `Looks`. Returns the keys of those that answer, which have handles now, and of those that
        do not. Takes milliseconds where there are none. Raises MeshError if this board's daemon is
        silent.
        """
        boards = ask_pages(self.own.client, *PAGES, QUESTION_S)["boards"]
        now_s, own = time.monotonic(), self.identity.keys.public
        due = [
            board
            for board in _others(boards, {own, *excluded})
            if (wanted is None or board["key"] in wanted)
            and not self._is_taken(board)
            and self._looks.is_due(board["key"], now_s)
        ]
        reached = {board["key"] for board in due if self._try(board, _LOOK_S)}
        lost = {board["key"] for board in due} - reached
        for key in lost & self.handles.keys():
            self.handles.pop(key).client.close()
        return reached, lost

    def _is_taken(self, board: dict[str, Any], name: str = "") -> bool:
        """Whether a board runs another session than this one, as it says.

        What it holds for this one is of an earlier connection, and freed when this one asks. Boards
        of the previous version tell the hub's name alone: `name` is that of this one.
        """
        report = board.get("report", {})
        if report.get("does", "free") in ("free", "ending"):
            return False
        if "holder_key" not in report:
            return bool(report.get("holder") != name)
        holder = report["holder_key"], report.get("holder_session")
        return holder != (self.identity.keys.public, self.session)

    def has_daemon(self, *, same: bool = False) -> bool:
        """Whether a daemon runs on this board; with `same`, the same process as at first."""
        daemon = find_local(self.identity.folder)
        return daemon is not None and (not same or daemon.incarnation == self._incarnation)

    def own_answers(self) -> bool:
        """Whether the daemon of this board answers: a stopped one does not."""
        try:
            client = self._own()
            try:
                client.ask_raw("ping", {"bytes": 0}, QUESTION_S)
            finally:
                client.close()
        except MeshError:
            return False
        return True

    @property
    def own(self) -> BoardHandle:
        """This board."""
        return self.handles[self.identity.keys.public]

    def cluster(self) -> Topology:
        """Facts and links of the boards that answered, this one first."""
        handles = list(self.handles.values())
        links = {(0, i): handle.link for i, handle in enumerate(handles) if i}
        own, *others = (handle.facts for handle in handles)
        # A hub's process is larger than its daemon could measure: tokenizer and planner are in it.
        own = dataclasses.replace(own, fixed_bytes=max(own.fixed_bytes, self._fixed_bytes))
        return Topology((own, *others), links, unlinked=self._unlinked_pairs())

    def unlink(self, key: str, others: Collection[str]) -> None:
        """Remember for a while that a board cannot reach these others."""
        for other in others:
            self._unlinked[frozenset((key, other))] = time.monotonic() + UNLINKED_S

    def _unlinked_pairs(self) -> frozenset[tuple[int, int]]:
        """By indices in `cluster`: what was seen to fail, and what the boards' daemons say."""
        now, handles = time.monotonic(), list(enumerate(self.handles.values()))[1:]
        return frozenset(
            (i, j)
            for (i, one), (j, other) in combinations(handles, 2)
            if self._unlinked.get(frozenset((one.key, other.key)), now) > now
            or one.key in other.unreached
            or other.key in one.unreached
        )

    def _own(self) -> Client:
        daemon, keys = find_local(self.identity.folder), self.identity.keys
        if daemon is None:
            raise BoardLostError(
                "this board is not in the mesh: its daemon does not run",
                "start it: picoedge run",
                board=self.identity.name,
                key=self.identity.keys.public,
            )
        self._incarnation = daemon.incarnation
        return self._client(daemon.address, keys.public, self.identity.name)

    def _client(self, address: Address, key: str, name: str) -> Client:
        return Client(self.context, self.identity.keys, address, key, name, VERSION_1)

    def _try(self, board: dict[str, Any], timeout_s: float) -> bool:
        """Connect to a board at one of its addresses; whether it answers each ping in time."""
        why = "it has no address"
        for text in board["addresses"]:
            address = parse_address(text)
            client = self._client(address, board["key"], board["name"])
            try:
                link = self._links.measure(client, timeout_s)
                self._add(client, board["key"], text, link, timeout_s)
            except MeshError as error:
                client.close()
                why = error.message
            else:
                self._left_out.discard(board["key"])
                return True
        if board["key"] not in self._left_out:
            self._left_out.add(board["key"])
            self._tell(f"{board['name']} is left out: {why}")
        return False

    def _add(
        self, client: Client, key: str, address: str, link: LinkFacts, timeout_s: float
    ) -> None:
        with ExitStack() as failing:
            failing.callback(client.close)
            facts, unreached, kept = _facts_in(self._measured(client, timeout_s), client.name)
            if facts.key != key:
                raise ProtocolError(f"{client.name} speaks for another board")
            failing.pop_all()
        if (before := self.handles.get(key)) is not None:
            before.client.close()
        self._looks.looked(key, time.monotonic())
        self.handles[key] = BoardHandle(
            key, client.name, address, facts, link, client, unreached, kept
        )

    def _measured(self, client: Client, timeout_s: float) -> Body:
        """What a board says that it can do; one that measures itself still may be waited for."""
        is_told = False
        while True:
            began_s = time.monotonic()
            try:
                return client.ask("board-facts", timeout_s=timeout_s)
            except (BoardLostError, ProtocolError):
                raise
            except MeshError as error:
                if self._measuring_s <= 0.0:
                    raise
                if not is_told:
                    self._tell(f"waiting up to {self._measuring_s:.0f} s: {error.message}")
            is_told = True
            time.sleep(_MEASURING_LOOK_S)
            self._measuring_s -= time.monotonic() - began_s

    def close(self) -> None:
        """Close all connections, which frees the boards reserved over them. Idempotent."""
        for handle in self.handles.values():
            handle.client.close()
        self.handles.clear()


def _others(boards: Sequence[dict[str, Any]], known: Collection[str]) -> list[dict[str, Any]]:
    """Boards that are heard, but those whose keys are known; by name."""
    heard = [board for board in boards if board["condition"] in PRESENT]
    heard.sort(key=lambda board: (board["name"], board["key"]))
    return [board for board in heard if board["key"] not in known]


def _facts_in(answer: Body, name: str) -> tuple[BoardFacts, frozenset[str], SliceKey | None]:
    """A board's facts, the keys of the boards that it cannot reach, and its kept slice.

    Raises ProtocolError.
    """
    facts = answer.get("facts")
    if not isinstance(facts, dict):
        raise ProtocolError(f"{name} sent no facts")
    # Facts of a later version are left out. Its name is the roster's: what a board calls itself may
    # be the name of another one.
    known = {field.name: facts[field.name] for field in _FACTS if field.name in facts}
    room = {each: answer[each] for each in _ROOM if each in answer}
    values = {**known, **room, "name": name, "budget_bytes": answer.get("memory_bytes")}
    where = f"the facts of {name}"
    unreached = Fields({"unreached": [], **answer}, where)
    keys = unreached.texts("unreached", MAX_ENTRIES, KEY_CHARS)
    kept = read_kept(answer["kept"], where) if answer.get("kept") else None
    return board_from_json(values, where), frozenset(keys), kept


# -- shards on disk ------------------------------------------------------------------------------


def locate_shards(directory: BoardDirectory, pack: Pack) -> dict[int, HeldShards]:
    """The shards of `pack` on each board's disk, by the board's index in `directory.cluster()`.

    The hub is left out: it has the whole pack. A board that does not answer has none.
    """
    names = [item.name for item in pack.items()]
    return {
        index: held_shards(names, _held_names(handle.client, pack.identity, names))
        for index, handle in enumerate(directory.handles.values())
        if handle is not directory.own
    }


def _held_names(client: Client, identity: str, names: Sequence[str]) -> frozenset[str]:
    try:
        offer = read_offer(client.ask(OFFER, {"pack": identity}, OFFER_S))
        return frozenset(offer.names(names))
    except MeshError:  # it does not have the pack, or it failed, which the next request reports
        return frozenset()


def loaded_shards(directory: BoardDirectory, pack: Pack, options: OpenOptions) -> dict[int, Slice]:
    """The slices that boards have loaded still, by the board's index in `directory.cluster()`."""
    handles = enumerate(directory.handles.values())
    kept = {index: handle.kept for index, handle in handles if handle.kept is not None}
    return loaded_for(kept, pack, options) if kept else {}


# -- reservation ---------------------------------------------------------------------------------


def reserve_boards(
    handles: Sequence[BoardHandle],
    job: str,
    session: str,
    tell: Tell,
    wanted: SliceKey | None = None,
) -> int:
    """Reserve these boards for a kind of `job`, queueing for the busy ones.

    Returns bytes of memory on the first. What an earlier connection of the same `session` has
    reserved is freed for it. `wanted` is what this process will load: the first board's daemon may
    have kept it.

    Boards are reserved in the order of their keys, as every group does, so that two groups never
    wait for each other. Raises MeshError.
    """
    memory = 0
    for handle in sorted(handles, key=lambda handle: handle.key):
        told = partial(_tell_queue, handle.name, tell)
        body: dict[str, Any] = {"job": job, "session": session}
        if wanted is not None and handle is handles[0]:
            body["slice"] = wanted.to_json()
        with refusals(handle):
            answer = handle.client.ask("job-reserve", body, timeout_s=QUEUE_S, on_push=told)
        if handle is handles[0]:
            memory = Fields(answer).integer("memory_bytes")
    return memory


@contextmanager
def refusals(handle: BoardHandle) -> Iterator[None]:
    """Errors with which a board answers, as BoardRefusedError: they blame that board."""
    try:
        yield
    except BoardLostError:
        raise
    except MeshError as error:
        message = f"{handle.name}: {error.message}"
        raise BoardRefusedError(message, error.hint, board=handle.name, key=handle.key) from None


def _tell_queue(name: str, tell: Tell, kind: str, body: dict[str, Any]) -> None:
    if kind == "job-queued":
        holder, place = one_line(str(body.get("holder", "")), 64), body.get("place")
        line = f", {place - 1} more before this one" if type(place) is int and place > 1 else ""
        tell(f"waiting for {name}: it is taken by a session of {holder}{line}")
