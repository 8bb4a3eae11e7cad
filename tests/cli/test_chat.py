"""A conversation as its transcript: turns, commands, Ctrl-C, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_model import ScriptedModel, prompter_for, scripted_session
from typed_console import Typed, TypedConsole

from picoedge.cli.chat_commands import HELP, is_command
from picoedge.cli.chat_loop import converse
from picoedge.cli.chat_turns import Chat, ChatSettings
from picoedge.engine.session import Session


def talk(
    typed: list[Typed], *answers: str, interrupt_at: str = "", n_ctx: int = 1000, **settings: object
) -> tuple[Chat, str, int]:
    """The chat, its transcript without the greeting, and its exit code."""
    console = TypedConsole(typed, interrupt_at)
    session = scripted_session(*answers, n_ctx=n_ctx)
    chat = Chat(session, prompter_for(session), console, ChatSettings(**settings))  # type: ignore[arg-type]
    code = converse(chat)
    greeting, _, rest = console.transcript.partition("\n")
    assert greeting == f"parrot · fake, 1 thread · context {n_ctx} · /? for help"
    return chat, rest, code


def prompts_of(session: Session) -> list[str]:
    """The text of every prompt as far as it was run."""
    assert isinstance(session.model, ScriptedModel)
    return [bytes(i for i in ids if i < 256).decode() for _, ids in session.model.runs if ids[1:]]


def test_two_turns_and_goodbye() -> None:
    chat, transcript, code = talk(["hello", "and you?", "/bye"], "Hi!", "Fine.")
    assert transcript == ">>> hello\nHi!\n>>> and you?\nFine.\n>>> /bye\n"
    assert code == 0
    assert chat.messages == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "and you?"},
        {"role": "assistant", "content": "Fine."},
    ]


def test_the_second_turn_runs_only_what_is_new() -> None:
    chat, _, _ = talk(["hello", "and you?"], "Hi!", "Fine.")
    assert prompts_of(chat.session) == [
        "user: hello\nassistant: ",
        "\nuser: and you?\nassistant: ",
    ]


def test_ctrl_d_leaves() -> None:
    _, transcript, code = talk([])
    assert (transcript, code) == (">>> \n", 0)


def test_empty_lines_ask_nothing() -> None:
    _, transcript, _ = talk(["", "   ", "/bye"])
    assert transcript == ">>> \n>>>    \n>>> /bye\n"


def test_three_quotes_hold_several_lines_together() -> None:
    chat, transcript, _ = talk(['"""one', "", "two", 'three"""', "/bye"], "ok")
    assert transcript == '>>> """one\n... \n... two\n... three"""\nok\n>>> /bye\n'
    assert chat.messages[0]["content"] == "one\n\ntwo\nthree"


def test_three_quotes_on_lines_of_their_own() -> None:
    chat, _, _ = talk(['"""', "/set is no command here", '"""'], "ok")
    assert chat.messages[0]["content"] == "/set is no command here"


def test_three_quotes_on_one_line() -> None:
    chat, _, _ = talk(['"""one line"""'], "ok")
    assert chat.messages[0]["content"] == "one line"


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    chat, transcript, code = talk(["count", "/bye"], "abcdef", interrupt_at="c")
    assert transcript == ">>> count\nabc^C\n>>> /bye\n"
    assert code == 0
    assert chat.messages[-1] == {"role": "assistant", "content": "abc"}


def test_ctrl_c_after_a_stopped_answer_leaves_with_130() -> None:
    _, transcript, code = talk(["count", KeyboardInterrupt], "abcdef", interrupt_at="c")
    assert transcript == ">>> count\nabc^C\n>>> \n"
    assert code == 130


def test_ctrl_c_twice_at_the_prompt_leaves_with_130() -> None:
    _, transcript, code = talk([KeyboardInterrupt, KeyboardInterrupt])
    assert transcript == ">>> \n(Ctrl-C again leaves; so do /bye and Ctrl-D)\n>>> \n"
    assert code == 130


def test_ctrl_c_once_then_a_message_goes_on() -> None:
    _, _, code = talk([KeyboardInterrupt, "hello", KeyboardInterrupt, "/bye"], "Hi!")
    assert code == 0


def test_ctrl_c_twice_during_an_answer_leaves_with_130() -> None:
    console = TypedConsole(["count"])
    session = scripted_session("abcdef")

    def write(text: str) -> None:
        if text in "bc":
            console._interrupt()

    console.write = write  # type: ignore[method-assign]
    # the first is acted on only when the second has come
    session.cancel = lambda: None  # type: ignore[method-assign]
    assert converse(Chat(session, prompter_for(session), console, ChatSettings())) == 130


def test_ctrl_c_before_the_first_word_takes_the_question_back() -> None:
    console = TypedConsole(["count", "/bye"])
    session = scripted_session("abc")
    forward = session.model.forward

    def interrupted(tokens: list[int], position: int) -> object:
        console._interrupt()
        return forward(tokens, position)

    session.model.forward = interrupted  # type: ignore[method-assign,assignment]
    chat = Chat(session, prompter_for(session), console, ChatSettings())
    assert converse(chat) == 0
    assert chat.messages == []


def test_clear_forgets() -> None:
    chat, transcript, _ = talk(["hello", "/clear", "again"], "Hi!", "Ho!")
    assert ">>> /clear\nthe conversation is empty\n" in transcript
    assert prompts_of(chat.session)[1] == "user: again\nassistant: "


def test_regen_answers_the_last_message_again() -> None:
    chat, transcript, _ = talk(["hello", "bye now", "/regen", "/bye"], "Hi!", "Ciao.", "Adieu.")
    assert transcript == (">>> hello\nHi!\n>>> bye now\nCiao.\n>>> /regen\nAdieu.\n>>> /bye\n")
    assert [m["content"] for m in chat.messages] == ["hello", "Hi!", "bye now", "Adieu."]


def test_regen_that_says_nothing_keeps_the_old_answer() -> None:
    chat, _, _ = talk(["hello", "/regen"], "Hi!", "")
    assert [m["content"] for m in chat.messages] == ["hello", "Hi!"]


def test_regen_with_nothing_asked() -> None:
    _, transcript, _ = talk(["/regen"])
    assert "error: nothing has been asked yet (write something)\n" in transcript


def test_help_lists_every_command() -> None:
    _, transcript, _ = talk(["/?", "/help"])
    assert transcript.count(HELP) == 2
    for word in ["/?", "/bye", "/clear", "/set", "/show", "/save", "/load", "/regen"]:
        assert word in HELP


def test_unknown_commands_are_not_sent_to_the_model() -> None:
    chat, transcript, _ = talk(["/cler"])
    assert "error: no such command: /cler (did you mean: /clear?)\n" in transcript
    assert chat.messages == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("/bye", True),
        ("/set n 3", True),
        ("/cler", True),
        ("/etc/hosts is what?", False),
        ("/etc/hosts", False),
        ("1/2", False),
        ("/no_think Why is the sky blue?", False),
        ("/no_think", False),
        ("/think", False),
        ("/summarize", False),
        ("/cler the table", False),
        ("/", True),
        ("/ what?", False),
        ("/set\nn 3", False),
    ],
)
def test_messages_that_count_as_commands(message: str, expected: bool) -> None:
    assert is_command(message) is expected


def test_set_changes_sampling_and_the_length_of_answers() -> None:
    chat, transcript, _ = talk(
        ["/set temperature 0.2", "/set parameter top_k 5", "/set n 2", "hello"], "abcdef"
    )
    assert ">>> /set temperature 0.2\ntemperature is 0.2\n" in transcript
    assert chat.session.sampling.temperature == 0.2
    assert chat.session.sampling.top_k == 5
    assert chat.messages[-1]["content"] == "ab"
    assert "[stopped after 2 tokens: /set n 4]" in transcript


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/set temperature hot", "temperature 'hot' is not a number"),
        ("/set temperature", "temperature '' is not a number"),
        ("/set top_p 2", "top_p is 2"),
        ("/set temprature 1", "nothing to set by the name 'temprature' (did you mean"),
        ("/set n -5", "n -5 is no number of tokens"),
        ("/set think maybe", "think 'maybe' is neither on nor off"),
        ("/set var moood=1", "the chat template of parrot reads no variable 'moood' (did you mean"),
        ("/save", "no file was named"),
        ("/load gone/file", "no such file or directory: gone/file"),
        ("/save gone/file", "no such file or directory: gone/file"),
    ],
)
def test_commands_that_are_wrong_say_so_and_the_chat_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _, transcript, code = talk([line, "hello"], "Hi!")
    assert f"error: {error}" in transcript
    assert transcript.endswith(">>> hello\nHi!\n>>> \n")
    assert code == 0


def test_set_system_is_told_to_the_model() -> None:
    chat, _, _ = talk(["/set system Be brief.", "hello"], "Hi!")
    assert prompts_of(chat.session) == ["system: Be brief.\nuser: hello\nassistant: "]


def test_unknown_words_with_a_slash_are_for_the_model() -> None:
    chat, transcript, _ = talk(["/no_think Why?"], "So.")
    assert transcript == ">>> /no_think Why?\nSo.\n>>> \n"
    assert chat.messages[0]["content"] == "/no_think Why?"


def test_set_think_and_variables_are_told_to_the_template() -> None:
    typed = ["/set think off", "a", "/set think on", "/set var mood=7", "b", "/set var mood", "c"]
    chat, _, _ = talk(typed, "A", "B", "C")
    prompts = "".join(prompts_of(chat.session))
    assert "enable_thinking=False\nuser: a" in prompts
    assert "True\nmood=7\nuser: a" in prompts
    assert prompts.count("mood") == 1
    assert chat.log.conversation.settings == {"think": "on", "var.mood": None}


def test_set_stop_ends_answers() -> None:
    chat, _, _ = talk(["/set stop END", "hello"], "one END two")
    assert chat.messages[-1]["content"] == "one "


def test_set_verbose_shows_rates() -> None:
    _, transcript, _ = talk(["/set verbose", "hello", "/set quiet", "again"], "Hi!", "Ho!")
    line = "[prompt 24 tokens 24.0 tok/s · answer 3 tokens 1.0 tok/s]"
    assert f"Hi!\n{line}\n" in transcript
    assert transcript.count("tok/s]") == 1


def test_show_tells_settings_and_size() -> None:
    _, transcript, _ = talk(["/set seed 7", "hello", "/show"], "Hi!")
    assert "seed            7\n" in transcript
    assert "temperature     0\n" in transcript
    assert "conversation    2 messages, " in transcript


def test_save_and_load_carry_a_conversation_over(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk(["/set system Be brief.", "hello", f"/save {file}"], "Hi!")
    chat, transcript, _ = talk([f"/load {file}", "and you?"], "Fine.")
    assert f"2 messages from {file}\n" in transcript
    assert prompts_of(chat.session) == [
        "system: Be brief.\nuser: hello\nassistant: Hi!\nuser: and you?\nassistant: "
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"messages": 3}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
        '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "b"}]}',
        '{"messages": [1, 2]}',
        '{"system": 1, "messages": []}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_saved_conversation_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(content)
    chat, transcript, _ = talk(["hello", f"/load {file}"], "Hi!")
    assert f"error: {file}" in transcript
    assert len(chat.messages) == 2


def test_a_saved_conversation_is_plain_json(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    talk(["grüß dich", f"/save {file}"], "Hi!")
    assert json.loads(file.read_text())["messages"][0]["content"] == "grüß dich"


def test_a_conversation_longer_than_the_context_says_so_and_goes_on() -> None:
    chat, transcript, code = talk(["x" * 100, "hello"], "Hi!", n_ctx=60)
    assert "error: the prompt has 119 tokens, the context 60" in transcript
    assert chat.messages[0]["content"] == "hello"
    assert code == 0


def test_an_answer_that_fills_the_context_says_so() -> None:
    _, transcript, _ = talk(["hello"], "x" * 100, n_ctx=40)
    assert "[the answer ends here: the context of 40 tokens is full]" in transcript


def test_a_full_context_leaves_the_oldest_turns_out_and_says_so_once() -> None:
    typed = ["a" * 20, "b" * 20, "c" * 20, "d" * 20]
    chat, transcript, _ = talk(typed, "A", "B", "C", "D", n_ctx=140)
    assert transcript.count("is no longer sent") + transcript.count("are no longer sent") == 1
    assert "[the context of 140 tokens is full: the first 2 turns are no longer sent]" in transcript
    assert [m["content"][0] for m in chat.messages] == [*"aAbBcCdD"]  # all are kept
    assert [m["content"][0] for m in chat.prompt_messages()] == [*"cCdD"]


def test_a_conversation_begun_anew_is_sent_whole() -> None:
    typed = ["a" * 20, "b" * 20, "c" * 20, "/clear", "e", "f"]
    chat, _, _ = talk(typed, "A", "B", "C", "E", "F", n_ctx=100)
    assert [m["content"] for m in chat.prompt_messages()] == ["e", "E", "f", "F"]


def test_a_system_message_stays_when_turns_are_left_out() -> None:
    typed = ["/set system short", "a" * 30, "b" * 30, "c" * 30]
    chat, _, _ = talk(typed, "A", "B", "C", n_ctx=110)
    assert chat.prompt_messages()[0] == {"role": "system", "content": "short"}
    assert len(chat.prompt_messages()) < len(chat.messages)


def failing_talk(typed: list[Typed], *answers: str, fails_at: int) -> tuple[Chat, str]:
    """The chat and its transcript where run `fails_at` of the model cannot read the storage."""
    console, session = TypedConsole(typed), scripted_session(*answers)
    session.model.fails_at = fails_at  # type: ignore[attr-defined]
    chat = Chat(session, prompter_for(session), console, ChatSettings())
    assert converse(chat) == 0
    return chat, console.transcript.partition("\n")[2]


STORAGE_ERROR = "error: layer-001.safetensors: reading failed (check the card)"


def test_an_answer_that_breaks_off_is_kept_and_the_chat_goes_on() -> None:
    chat, transcript = failing_talk(["count", "and then?", "/bye"], "abcdef", "fine", fails_at=3)
    assert transcript == f">>> count\nabc\n{STORAGE_ERROR}\n>>> and then?\nfine\n>>> /bye\n"
    assert [message["content"] for message in chat.messages] == [
        "count", "abc", "and then?", "fine",
    ]  # fmt: skip


def test_a_question_whose_answer_never_began_is_taken_back() -> None:
    chat, transcript = failing_talk(["count", "again", "/bye"], "fine", fails_at=0)
    assert transcript == f">>> count\n{STORAGE_ERROR}\n>>> again\nfine\n>>> /bye\n"
    assert [message["content"] for message in chat.messages] == ["again", "fine"]


def test_set_verbose_shows_the_waiting_where_something_is_streamed() -> None:
    console, session = TypedConsole(["hi", "/bye"]), scripted_session("abc")
    assert isinstance(session.model, ScriptedModel)
    session.model.memory_plan = object()  # type: ignore[assignment]
    converse(Chat(session, prompter_for(session), console, ChatSettings(verbose=True)))
    assert "\n[a token: 0 s waiting, 1 s computing, 0 B read]\n" in console.transcript
