"""The pure parts of the bench `weeks`: the life, what a terminal shows, and the verdicts."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.children import ROOT
from bench.life.desk.beside import Wanting
from bench.life.desk.questions import TURNS, Conversation
from bench.life.desk.transcript import shown
from bench.life.faults.events import BRIEF, CHAT, MAKERS, SPARED, WORKER, Bounds, Event, life
from bench.life.faults.preload import Faults, compiled
from bench.life.verdict.judge import Asked, answered_part, first_token_ratio, judge, same_part
from bench.life.verdict.said import bad_words


def test_a_seed_gives_the_same_life_each_time() -> None:
    first, again, other = (list(itertools.islice(life(s, Bounds()), 40)) for s in (7, 7, 8))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(20))
def test_each_kind_comes_once_before_any_comes_again(seed: int) -> None:
    events = list(itertools.islice(life(seed, BRIEF), 2 * len(MAKERS)))
    deals = events[: len(MAKERS)], events[len(MAKERS) :]
    first, second = (sorted((event.kind, event.victim) for event in deal) for deal in deals)
    assert first == second
    assert all(0 <= event.board < BRIEF.boards for event in events)


@pytest.mark.parametrize("seed", range(20))
def test_one_daemon_lives_for_good(seed: int) -> None:
    events = list(itertools.islice(life(seed, Bounds()), 200))
    daemons = [e for e in events if e.board == SPARED and e.kind in ("kill", "hup", "oom")]
    assert all(event.victim == WORKER for event in daemons)
    assert not any(e.board == SPARED for e in events if e.kind in ("reboot", "restart"))
    assert any(event.ends_hub for event in events)


@pytest.mark.parametrize("seed", range(5))
def test_single_answers_come_from_another_board_all_along(seed: int) -> None:
    first, again, late = (Wanting(random.Random(seed)) for _ in range(3))
    wanted = [first.next(may_queue=True) for _ in range(100)]
    assert wanted == [again.next(may_queue=True) for _ in range(100)]
    singles = [one for one in wanted if one is not None]
    assert 30 < len(singles) < 70
    assert CHAT not in {one.board for one in singles}
    assert {one.queues for one in singles} == {False, True}
    assert {one.command for one in singles} == {("generate",), ("chat",)}
    last = [late.next(may_queue=False) for _ in range(100)]
    assert not any(one.queues for one in last if one is not None)  # none waits for the chat


def test_a_reboot_ends_all_commands_of_its_board() -> None:
    assert Event("reboot", 1, 1).ends_all_on(1)
    assert not Event("reboot", 1, 1).ends_all_on(2)
    assert not Event("kill", 1, 1, "daemon").ends_all_on(1)


ASKED = "What is a river?"


@pytest.mark.parametrize(
    ("seen", "text", "error", "is_complete"),
    [
        ("What is a ri", "", "", False),
        ("What is a river?\r\n\x1b[?2004l\rA riv", "A riv", "", False),
        ("What is a river?\r\n\x1b[?2004l\rA river.\r\n\x1b[?2004h>>> ", "A river.", "", True),
        (
            "What is a river?\r\nA\r\nriver\r\n[stopped after 16 tokens: /set n 32]\r\n>>> ",
            "A\nriver", "", True,
        ),
        ("What is a river?\r\nA\r\nerror: gone (help)\r\n>>> ", "A", "error: gone (help)", True),
        ("What is a river?\r\n>>> ", "", "", True),
    ],
)  # fmt: skip
def test_a_terminal_s_text_is_split_into_answer_and_error(
    seen: str, text: str, error: str, is_complete: bool
) -> None:
    found = shown(ASKED, seen)
    assert (found.text, found.error, found.is_complete) == (text, error, is_complete)


def test_an_echo_before_an_answer_is_not_its_first_token() -> None:
    before = "What is a river?\r\n\x1b[?2004l\r"
    assert shown(ASKED, before + "A").echo_bytes == len(before)


@pytest.mark.parametrize(
    ("text", "error", "is_complete", "is_cut", "verdict"),
    [
        ("a b c", "", True, False, ("whole", True)),
        ("a b d", "", True, False, ("whole", False)),
        ("a b", "", True, True, ("cut", True)),
        ("b", "", True, True, ("cut", False)),
        ("a", "error: no", True, False, ("failed", True)),
        ("a", "", False, False, ("failed", True)),
    ],
)
def test_verdicts(
    text: str, error: str, is_complete: bool, is_cut: bool, verdict: tuple[str, bool]
) -> None:
    assert judge(text, "a b c", error, is_complete, is_cut) == verdict


def asked(outcome: str, same: bool = True, first_s: float = 1.0, calm: bool = True) -> Asked:
    return Asked(0.0, "", "calm", outcome, same, 3, first_s, 2.0, calm)


def test_a_question_that_a_person_cut_does_not_count() -> None:
    assert answered_part([asked("whole"), asked("cut"), asked("failed")]) == 0.5
    assert same_part([asked("whole"), asked("whole", same=False)]) == 0.5


def test_first_tokens_are_compared_where_nothing_was_wrong() -> None:
    times = [asked("whole", first_s=s) for s in (1.0, 1.0, 3.0)]
    assert first_token_ratio([*times, asked("whole", first_s=50.0, calm=False)]) == (3.0, 3.0)


def test_a_conversation_is_what_was_said() -> None:
    talk = Conversation()
    talk.next_question()
    talk.answered("")
    assert talk.messages == []
    for _ in range(TURNS):
        talk.next_question()
        talk.answered("so")
    assert talk.is_long
    assert not talk.differs(talk.messages)
    assert talk.differs(talk.messages[:-1])


@pytest.mark.parametrize(
    ("text", "is_bad"),
    [
        (b"board2: loading  100%\r\x1b[K>>> hello\r\n", False),
        (b"\x1b[?2004h>>> hello\r\n\x1b[?2004l\r", False),
        (b"Traceback (most recent call last):\n", True),
        (b"this is a defect of picoedge", True),
        (b"\x1b[31mred\x1b[0m", True),
        (b"a bell\x07", True),
    ],
)
def test_words_that_no_terminal_and_no_log_may_show(text: bytes, is_bad: bool) -> None:
    assert bool(bad_words("chat", text)) == is_bad


# -- the card that is full, and Ctrl-C -------------------------------------------------------------

WRITES = """
import os, sys
for fd in (1, 2, int(sys.argv[1])):
    try:
        os.write(fd, b"x")
    except OSError as error:
        os.write(int(sys.argv[2]), f"{fd} {error.errno} ".encode())
"""


@pytest.mark.parametrize("is_full", [False, True])
def test_on_a_full_card_output_is_lost_as_well(tmp_path: Path, is_full: bool) -> None:
    """A daemon's log is on the card: its standard error is a regular file."""
    faults = Faults(compiled("life/faults/faults.c", tmp_path), tmp_path / "faults")
    faults.set_full(is_full)
    read, told = os.pipe()
    with (tmp_path / "log").open("wb") as log, (tmp_path / "other").open("wb") as other:
        number = other.fileno()
        subprocess.run(
            [sys.executable, "-S", "-c", WRITES, str(number), str(told)],
            env={**os.environ, **faults.environment()}, stdout=log, stderr=log, check=True,
            pass_fds=(number, told), timeout=60,
        )  # fmt: skip
    os.close(told)
    with os.fdopen(read) as failed:
        assert failed.read() == (f"1 28 2 28 {number} 28 " if is_full else "")
    assert (tmp_path / "log").read_bytes() == (b"" if is_full else b"xx")


LIVES = """
import sys, threading
from bench.life.rows import side_by_side
class Lab:
    def close(self):
        print("closed", flush=True)
def live(seed):
    print("lives", flush=True)
    threading.Timer(1000, print).start()
    threading.Event().wait()
side_by_side(live, [1, 2], [Lab(), Lab()])
"""


def test_the_first_interrupt_ends_lives() -> None:
    words = [sys.executable, "-c", LIVES]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as run:
        assert run.stdout is not None
        assert [run.stdout.readline() for _ in range(2)] == [b"lives\n"] * 2
        try:
            run.send_signal(signal.SIGINT)
            assert run.wait(20) in (-signal.SIGINT, 130)
            assert run.stdout.read() == b"closed\n" * 2
        finally:
            run.kill()
