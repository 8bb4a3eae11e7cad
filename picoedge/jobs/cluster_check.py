"""`picoedge doctor --cluster`: can each board open connections to each other one, and if not, why.

Each daemon is asked to try the others; a line says what to open where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from picoedge.engine.doctor import Check
from picoedge.errors import PicoedgeError
from picoedge.fields import Fields
from picoedge.jobs.spec import VERSION_1
from picoedge.jobs.status import PAGES, PRESENT, STATE_S
from picoedge.mesh.addresses import SILENT, Address, parse_address, probe
from picoedge.mesh.node.finder import MAX_ADDRESS, MAX_ADDRESSES
from picoedge.mesh.transport.client import Client, ask_pages, connect_local
from picoedge.sanitize import one_line

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import Identity
    from picoedge.mesh.transport.curve import Context

_ANSWER_S = 12.0  # of a daemon that asks another one first, and then tries its ports for seconds
MOST_THREADS = 8  # boards that are asked at once; one that hangs holds up an eighth of the check
MAX_WHY = 200  # characters


@dataclass(frozen=True)
class CheckedBoard:
    """A board of the cluster, with the addresses that this board's daemon knows of it."""

    key: str
    name: str
    is_present: bool
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Tried:
    """The outcome of a connection to an address: `why` it failed, or ""."""

    address: Address
    why: str


def check_cluster(context: Context, identity: Identity) -> list[Check]:
    """A check of each ordered pair of boards. Raises MeshError where no daemon runs here."""
    with connect_local(context, identity.folder, VERSION_1) as daemon:
        listed = ask_pages(daemon, *PAGES, STATE_S)["boards"]
    own, *others = [_member(Fields(board, "a board")) for board in listed]
    if not others:
        return [Check("cluster", "warn", "no other board is known", "picoedge keys invite")]
    with ThreadPoolExecutor(MOST_THREADS) as pool:
        found = pool.map(
            lambda one: _checks_of(context, identity, one, own, others), (own, *others)
        )
        return [check for checks in found for check in checks]


def _member(board: Fields) -> CheckedBoard:
    texts = board.texts("addresses", MAX_ADDRESSES, MAX_ADDRESS)
    return CheckedBoard(
        board.text("key"),
        one_line(board.text("name")),
        board.values.get("condition") in PRESENT,
        tuple(map(parse_address, texts)),
    )


def _checks_of(
    context: Context,
    identity: Identity,
    one: CheckedBoard,
    own: CheckedBoard,
    others: Sequence[CheckedBoard],
) -> list[Check]:
    """Checks of a board's ways to the others, as it reports them."""
    if not one.is_present:
        return []
    closed = probe(one.addresses)
    reached = next((each for each in one.addresses if each not in closed), None)
    if reached is None:
        return []  # this board's own daemon says why
    with Client(context, identity.keys, reached, one.key, one.name, VERSION_1) as client:
        return [
            _checked(client, one, other, is_own=own in (one, other))
            for other in (own, *others)
            if other is not one and (other.is_present or one is own)
        ]


def _checked(client: Client, one: CheckedBoard, other: CheckedBoard, *, is_own: bool) -> Check:
    name = f"{one.name} to {other.name}"
    try:
        answer = Fields(client.ask("reach-board", {"key": other.key}, _ANSWER_S))
        daemons = [_tried(each) for each in answer.objects("daemon", MAX_ADDRESSES)]
        worker = _tried(answer.object("worker")) if "worker" in answer.values else None
    except PicoedgeError as error:
        return Check(name, "warn", one_line(error.message), one_line(error.hint))
    return judged(name, one.name, other, daemons, worker, is_own=is_own)


def _tried(fields: Fields) -> Tried:
    address = parse_address(fields.text("address", MAX_ADDRESS))
    return Tried(address, one_line(fields.text("why", MAX_WHY)))


def judged(
    name: str,
    asker: str,
    other: CheckedBoard,
    daemons: Sequence[Tried],
    worker: Tried | None,
    *,
    is_own: bool,
) -> Check:
    """The check of one board's ways to `other`. `is_own`: one of the two is this board.

    Without the way between two others, this board passes their sums on: slower, but no failure.
    """
    reached = next((each.address for each in daemons if not each.why), None)
    if reached is None:
        tried = (
            "; ".join(f"{each.address}: {each.why}" for each in daemons) or "no address is known"
        )
        gone = "" if other.is_present else "it is not there now; "
        status = "fail" if is_own and other.is_present else "warn"
        return Check(name, status, f"{gone}{tried}", " ".join(_remedies(asker, other, daemons)))
    text = f"port {reached.port} of {reached.host}"
    if worker is None:
        return Check(name, "ok", text)
    if not worker.why:
        return Check(
            name, "ok", f"{text}, and its workers' ports ({worker.address.port} was tried)"
        )
    closed = f"its workers' port {worker.address.port} is closed ({worker.why})"
    return Check(name, "ok", f"{text}; {closed}: sums come by port {reached.port}")


def _remedies(asker: str, other: CheckedBoard, daemons: Sequence[Tried]) -> Iterator[str]:
    ports = sorted({each.address.port for each in daemons})
    whys = {each.why for each in daemons}
    if SILENT in whys:
        opened = " ".join(f"ufw allow {port}/tcp" for port in ports)
        yield (
            f"on {other.name}, let TCP port {', '.join(map(str, ports))} in from {asker}, as by"
            f" `{opened}`; behind an access point, turn off the isolation of its clients."
        )
    elif any("listens" in why for why in whys) or not daemons:
        yield f"on {other.name}, start picoedge run, or see its --listen."
    else:
        yield f"{asker} and {other.name} share no network: give them one."
