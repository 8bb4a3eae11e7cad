"""Notes of the commands on the surprises of a chat template and a tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runs import GREEDY, TEMPLATE, Run
from fake_model import ScriptedModel, prompter_for, scripted_session
from typed_console import TypedConsole

from picoedge.cli.chat_loop import converse
from picoedge.cli.chat_turns import Chat, ChatSettings
from picoedge.text.template.template import ChatTemplate

DEAF = TEMPLATE.replace("in messages", "in messages if m.role != 'system'")
ANSWER = ["-n", "4", *GREEDY]


@pytest.fixture
def with_template(pack: Path, tmp_path: Path) -> Path:
    """A pack whose text files the test may change."""
    copy = tmp_path / "changed.pico"
    shutil.copytree(pack, copy)
    return copy


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_system_message_without_a_place_is_told_of_and_used(
    run: Run, with_template: Path, command: str
) -> None:
    (with_template / "chat_template.jinja").write_text(DEAF)
    plain = run(command, with_template, "-p", "A", *ANSWER)
    merged = run(command, with_template, "-p", "A", "--system", "Be brief.", *ANSWER)
    same = run(command, with_template, "-p", "Be brief.\n\nA", *ANSWER)
    assert (plain.err, same.err) == ("", "")
    assert "note: the model's chat template takes no system message" in merged.err
    assert merged.out == same.out


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_template_without_the_question_is_refused(
    run: Run, with_template: Path, command: str
) -> None:
    (with_template / "chat_template.jinja").write_text("Hello.")
    ran = run(command, with_template, "-p", "A", *ANSWER)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "error: the model's chat template drops the question "
        "(complete plain text instead: picoedge generate --raw)\n"
    )
    assert run("generate", "--raw", with_template, "-p", "A", *ANSWER).code == 0


def test_doubts_about_the_tokenizer_are_told_whenever_it_is_used(
    run: Run, with_template: Path
) -> None:
    path = with_template / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "warnings": ["'default' is\x1b[2J assumed"]}
    path.write_text(json.dumps(settings))
    ran = run("generate", with_template, "-p", "A", *ANSWER)
    assert ran.err == "note: 'default' is[2J assumed\n"


def test_packing_tells_what_the_template_writes_in_vain(run: Run, tmp_path: Path) -> None:
    import shelf_models

    shelf_models.write_folder(tmp_path / "tiny")
    written = TEMPLATE.replace("[{{ m.role }}]", "<|{{ m.role }}|>")
    (tmp_path / "tiny" / "chat_template.jinja").write_text(written)
    ran = run("pack", tmp_path / "tiny", "-o", tmp_path / "tiny.pico")
    assert ran.code == 0
    assert "note: the chat template writes <|assistant|>, <|system|>, <|user|>" in ran.err


def test_a_chat_tells_of_a_system_message_once() -> None:
    template = ChatTemplate(
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    console = TypedConsole(["/set system Be brief.", "A?", "B?", "/bye"])
    session = scripted_session("a", "b")
    prompter = replace(prompter_for(session), template=template)
    chat = Chat(session, prompter, console, ChatSettings())
    assert converse(chat) == 0
    assert console.transcript.count("takes no system message") == 1
    assert isinstance(session.model, ScriptedModel)
    first = bytes(i for i in session.model.runs[0][1] if i < 256).decode()
    assert first == "user: Be brief.\n\nA?\n"
