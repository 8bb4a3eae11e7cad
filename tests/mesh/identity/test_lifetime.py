"""An invite is open as long as it says, whatever clocks do meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from identity_homes import NOW, UNIX, issue

from picoedge.errors import ProtocolError
from picoedge.mesh.identity.admission import Invites, parse_invite
from picoedge.mesh.identity.lifetime import MOST_BOOTS, Lifetime, Moment

YEARS_S = 56 * 365 * 86_400
UNSET = 30.0  # 1970, half a minute after the board was switched on


def stepped(now: Moment, seconds: float) -> Moment:
    """Another clock in the same boot."""
    return Moment(now.unix_s + seconds, now.boot_s, now.boot)


def restarted(unix_s: float, boot_s: float = 30.0, boot: str = "another") -> Moment:
    return Moment(unix_s, boot_s, boot)


@pytest.mark.parametrize("step_s", [YEARS_S, -YEARS_S, 3600, -3600])
def test_a_clock_that_steps_changes_nothing_within_a_boot(home: Path, step_s: float) -> None:
    public, invites = parse_invite(issue(home, 600)).keys.public, Invites(home)
    assert invites.is_open(public, NOW)
    for each in (invites, Invites(home)):  # the daemon, and a new one
        assert each.is_open(public, stepped(NOW.after(599), step_s))
        assert not each.is_open(public, stepped(NOW.after(600), step_s))
    assert invites.open_until(stepped(NOW.after(100), step_s)) == [UNIX + 600 + step_s]
    assert not invites.spend(public, stepped(NOW.after(601), step_s))
    assert invites.spend(public, stepped(NOW.after(599), step_s))


def test_a_clock_that_is_set_tells_how_long_the_board_was_off() -> None:
    life = Lifetime.of(600, NOW)
    assert life.left_s(restarted(UNIX + 100)) == 500
    assert life.left_s(restarted(UNIX + 601)) <= 0
    again = life.in_boot(restarted(UNIX + 100))
    assert again.left_s(restarted(UNIX + 100 - YEARS_S, 130)) == 400
    assert again.left_s(restarted(UNIX + 100 + YEARS_S, 130)) == 400


def test_a_clock_that_is_not_set_ends_no_invite_at_once() -> None:
    life = Lifetime.of(600, NOW)
    boot = life.in_boot(restarted(UNSET))
    assert boot.left_s(restarted(UNSET + 20, 50)) == 550
    assert boot.left_s(restarted(UNIX + 200, 50)) == 400, "the clock was set from the network"
    assert boot.left_s(restarted(UNIX + 700, 50)) <= 0
    issued_unset = Lifetime.of(600, Moment(UNSET, 30.0, "a boot"))
    assert issued_unset.left_s(Moment(UNIX, 90.0, "a boot")) == 540
    assert issued_unset.left_s(restarted(UNIX, 90.0)) == 510
    assert issued_unset.left_s(restarted(UNIX, 601.0)) <= 0


@pytest.mark.parametrize("begun_s", [UNIX, UNSET])
def test_a_board_that_is_restarted_for_ever_has_no_invite_for_ever(
    home: Path, begun_s: float
) -> None:
    begun = Moment(begun_s, 30.0, "boot 1")
    string = Invites(home).issue("192.0.2.7:7433", "k" * 40, 600, begun)
    public, was_open = parse_invite(string).keys.public, 1
    for number in range(2, 20):
        now = restarted(UNSET, boot=f"boot {number}")
        Invites(home).settle(now)
        Invites(home).settle(now.after(1))
        was_open += Invites(home).is_open(public, now.after(2))
    assert was_open == MOST_BOOTS
    assert (home / "invites.json").read_text().strip() == "{}"


def test_an_expired_invite_is_not_open_again_after_a_restart(home: Path) -> None:
    public, daemon = parse_invite(issue(home, 600)).keys.public, Invites(home)
    daemon.settle(NOW.after(599))
    assert daemon.is_open(public, NOW.after(599))
    daemon.settle(NOW.after(660))
    assert not Invites(home).is_open(public, restarted(UNSET))


def test_invites_of_earlier_versions_tell_their_end_alone() -> None:
    life = Lifetime.read(UNIX + 600)
    assert life.left_s(NOW) == 600
    assert life.left_s(Moment(UNSET, 30.0, "a boot")) < 86_400
    assert Lifetime.read(life.in_boot(NOW).to_json()).left_s(NOW.after(600)) <= 0
    for bad in (-1, True, 1.5, "x", None, {}, {**life.to_json(), "boots": 0}, 1 << 60):
        with pytest.raises(ProtocolError):
            Lifetime.read(bad)


def test_the_time_of_this_board() -> None:
    one, other = Moment.now(), Moment.now()
    assert one.boot == other.boot
    assert other.boot_s >= one.boot_s > 0
    assert Lifetime.of(5, one).left_s(other) <= 6
