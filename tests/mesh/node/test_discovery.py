"""Addresses as people write them; which interface is told to others; what mDNS may say."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoedge.errors import MeshError, UsageError
from picoedge.mesh.addresses import DEFAULT_PORT, Address, parse_address, parse_addresses
from picoedge.mesh.identity.identity import KeyPair
from picoedge.mesh.interfaces import Interface, choose_hosts, interfaces, own_addresses, scoped
from picoedge.mesh.node.announce import Discovery, read_announcement

WIRED = Interface("eth0", ("192.168.1.20",))
WIRELESS = Interface("wlan0", ("192.168.1.21",), is_wireless=True)
LOOPBACK = Interface("lo", ("127.0.0.1",), is_loopback=True)
DOCKER = Interface("docker0", ("172.17.0.1",))
BRIDGE = Interface("lab", ("10.9.0.1",), is_bridge=True)
TUNNEL = Interface("wg0", ("10.8.0.2",))
BARE = Interface("eth1", ())
DOWN = Interface("eth2", ("10.0.0.1",), is_up=False)


def routed(interface: Interface) -> Interface:
    return Interface(**{**vars(interface), "has_default_route": True})


@pytest.mark.parametrize(
    ("present", "address", "reason"),
    [
        ([LOOPBACK, WIRED], "192.168.1.20", "eth0: the only one with an address"),
        ([WIRELESS, WIRED], "192.168.1.20", "eth0: wired"),
        ([WIRED, routed(WIRELESS)], "192.168.1.21", "wlan0: wireless, with the default route"),
        ([routed(WIRELESS), routed(WIRED)], "192.168.1.20", "eth0: wired, with the default route"),
        ([DOCKER, BRIDGE, routed(TUNNEL), WIRELESS], "192.168.1.21", "wlan0: wireless"),
        ([BARE, DOWN, WIRED, LOOPBACK], "192.168.1.20", "eth0: the only one with an address"),
        ([LOOPBACK, DOCKER, TUNNEL], "172.17.0.1", "docker0: nothing but"),
        ([LOOPBACK], "127.0.0.1", "lo: this board has no other, and no other board can reach it"),
    ],
)
def test_the_interface_chosen(present: list[Interface], address: str, reason: str) -> None:
    hosts, why = choose_hosts(present)
    assert hosts[0] == address
    assert why.startswith(reason)


V6 = Interface("eth0", ("2001:db8::1", "2001:db8::2", "2001:db8::3", "fe80::1%eth0"))
NEAR = Interface("eth1", ("fe80::2%eth1",))


@pytest.mark.parametrize(
    ("present", "hosts"),
    [
        ([LOOPBACK, WIRED, WIRELESS, DOCKER], ("192.168.1.20", "192.168.1.21")),
        ([LOOPBACK, V6, NEAR], ("2001:db8::1", "2001:db8::2")),
        ([LOOPBACK, NEAR], ("fe80::2%eth1",)),
        ([V6, WIRELESS], ("2001:db8::1", "2001:db8::2", "192.168.1.21")),
    ],
)
def test_all_addresses_that_others_may_reach_are_told(
    present: list[Interface], hosts: tuple[str, ...]
) -> None:
    assert choose_hosts(present)[0] == hosts


def test_one_address_is_listened_at_alone() -> None:
    only = Address("192.168.1.20", 7)
    assert own_addresses(only)[0] == (only,)
    found, _ = own_addresses(Address("0.0.0.0", 7))
    assert not any(":" in each.host for each in found)
    assert all(each.port == 7 for each in found)


def test_a_link_local_address_is_tried_over_every_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scope of another board's word for its own interface says nothing here."""
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "lo"), (2, "end0"), (3, "wlan0")])
    there = Address("fe80::1%eth0", 7)
    assert list(scoped(there)) == [Address("fe80::1%end0", 7), Address("fe80::1%wlan0", 7)]
    assert list(scoped(Address("fd00::1", 7))) == [Address("fd00::1", 7)]


def test_no_interface() -> None:
    with pytest.raises(MeshError, match="no network interface"):
        choose_hosts([BARE, DOWN])


def test_this_machines_interfaces() -> None:
    assert any(each.is_loopback for each in interfaces())
    assert choose_hosts(interfaces())[0]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.1.20", Address("192.168.1.20", DEFAULT_PORT)),
        ("pi-4.local:80", Address("pi-4.local", 80)),
        ("::1", Address("::1", DEFAULT_PORT)),
        ("[fe80::1%eth0]:9", Address("fe80::1%eth0", 9)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a b",
        "a:",
        "a:x",
        "a:70000",
        "a:-1",
        "[::1",
        "[::1]x",
        "tcp://a",
        "a;b",
        "x" * 300,
    ],
)
def test_a_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse_address(text)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except UsageError:
        return
    assert parse_address(str(address)) == address
    assert address.endpoint.isprintable()


def test_several_addresses() -> None:
    assert parse_addresses("a:1, b ,") == (Address("a", 1), Address("b", DEFAULT_PORT))


# -- multicast DNS ---------------------------------------------------------------------------------

KEY = KeyPair.new().public
SAID = {b"cluster": b"tag", b"key": KEY.encode(), b"name": b"ada"}


def test_an_announcement_of_our_cluster() -> None:
    read = read_announcement(SAID, ["10.0.0.1", "fe80::1"], 7433, "tag")
    assert read == (KEY, (Address("10.0.0.1", 7433), Address("fe80::1", 7433)))


@pytest.mark.parametrize(
    ("said", "hosts", "port", "tag"),
    [
        (SAID, ["10.0.0.1"], 7433, "other"),
        (SAID, ["10.0.0.1"], None, "tag"),
        (SAID, [], 7433, "tag"),
        (SAID, ["not an address"], 7433, "tag"),
        (SAID, ["0.0.0.0"], 7433, "tag"),
        ({**SAID, b"key": None}, ["10.0.0.1"], 7433, "tag"),
        ({**SAID, b"key": b"\xff" * 40}, ["10.0.0.1"], 7433, "tag"),
        ({}, ["10.0.0.1"], 7433, "tag"),
    ],
)
def test_announcements_that_are_not(said: Any, hosts: list[str], port: Any, tag: str) -> None:
    assert read_announcement(said, hosts, port, tag) is None


def test_boards_find_each_other_and_no_other_cluster() -> None:
    pytest.importorskip("zeroconf")
    heard: dict[str, list[str]] = {"ada": [], "bob": [], "eve": []}
    news = threading.Condition()
    keys = {name: KeyPair.new().public for name in heard}

    def start(name: str, tag: str, port: int) -> Discovery:
        def found(key: str, addresses: tuple[Address, ...]) -> None:
            with news:
                heard[name].append(key)
                news.notify_all()

        return Discovery(tag, keys[name], name, (Address("127.0.0.1", port),), found)

    boards = [start("eve", "theirs", 3), start("ada", "ours", 1), start("bob", "ours", 2)]
    try:
        with news:
            assert news.wait_for(lambda: heard["ada"] and heard["bob"], 20)
    finally:
        for board in boards:
            board.close()
            board.close()
    assert set(heard["ada"]) == {keys["bob"]}
    assert set(heard["bob"]) == {keys["ada"]}
    assert not heard["eve"]
