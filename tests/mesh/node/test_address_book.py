"""The address book: where a board was met, and what others report, which replaces nothing."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from mesh_nodes import Running, found, running

from picoedge.mesh.addresses import Address
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.node.finder import MAX_KEPT, MAX_REPORTED, AddressBook
from picoedge.mesh.node.liveness import Change

BOB, CYD, EVE = (KeyPair.new().public for _ in range(3))
MET = [Address("192.168.1.20", port) for port in range(1, MAX_KEPT + 1)]  # a full book of one board
MOVED = Address("10.0.0.7", 7433)


@pytest.fixture
def book(tmp_path: Path) -> AddressBook:
    made = AddressBook(tmp_path)
    made.add_seen(BOB, MET)
    return made


def test_a_report_of_a_board_that_moved_has_room_beside_all_that_is_known(
    book: AddressBook,
) -> None:
    book.add_reported(BOB, [MOVED], CYD)
    assert book.of(BOB) == (*MET, MOVED)
    book.add_seen(BOB, [MOVED])
    assert book.of(BOB) == (MOVED, *MET[: MAX_KEPT - 1])


def test_a_board_that_reports_without_end_replaces_its_own_reports_only(book: AddressBook) -> None:
    book.add_reported(BOB, [MOVED], CYD)
    for port in range(1, 5000, 8):
        lies = [Address("10.9.9.9", port + i) for i in range(7)]
        book.add_reported(BOB, [MOVED, *lies], EVE)
    assert book.of(BOB)[:MAX_KEPT] == tuple(MET)
    assert MOVED in book.of(BOB)
    assert len(book.of(BOB)) <= MAX_KEPT + MAX_REPORTED
    book.forget(EVE)
    assert book.of(BOB) == (*MET, MOVED)


def test_new_reports_make_room_for_themselves(book: AddressBook) -> None:
    ports = count(1)
    for _ in range(50):
        newest = Address("10.1.1.1", next(ports))
        book.add_reported(BOB, [newest], KeyPair.new().public)
        assert newest in book.of(BOB)
    assert len(book.of(BOB)) == MAX_KEPT + MAX_REPORTED


def test_only_what_was_met_is_kept_and_told(book: AddressBook, tmp_path: Path) -> None:
    book.save()
    book.add_reported(BOB, [MOVED], CYD)
    assert not book.has_news
    assert book.has_reports
    book.save()
    assert AddressBook(tmp_path).of(BOB) == tuple(MET)


def test_an_address_that_is_known_already_is_not_dialled_anew(book: AddressBook) -> None:
    book.add_reported(BOB, MET[:2], CYD)
    assert not book.has_reports


def test_boards_that_all_moved_meet_by_one_that_both_are_told_of(tmp_path: Path) -> None:
    """Another router: every address in every book is of the past; `--peers` names one board."""
    first, second, third = found(tmp_path, "ada", "bob", "cyd")
    past = [Address("127.0.0.1", port) for port in range(1, MAX_KEPT + 1)]
    everyone = [each.keys.public for each in (first, second, third)]
    for identity in (first, second, third):
        book = AddressBook(identity.folder)
        for key in everyone:
            if key != identity.keys.public:
                book.add_seen(key, past)
        book.save()
    cyd = Running(third)
    ada, bob = Running(first, cyd.address), Running(second, cyd.address)
    with running(cyd, ada, bob):
        ada.wait_for(bob, Change.JOINED)
        bob.wait_for(ada, Change.JOINED)


def test_the_address_that_works_is_dialled_whatever_others_report(tmp_path: Path) -> None:
    first, second, third = found(tmp_path, "ada", "bob", "cyd")
    ada = Running(first)
    book = AddressBook(second.folder)
    book.add_seen(first.keys.public, [ada.address])
    book.save()
    bob = Running(second)
    lies = [Address("127.0.0.1", port) for port in range(1, 9)]
    for key in (first.keys.public, third.keys.public):
        bob.node.peers.hint(key, *lies, reporter=EVE)
    with running(ada, bob):
        bob.wait_for(ada, Change.JOINED)
