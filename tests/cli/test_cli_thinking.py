"""Thinking, variables of a chat template, and templates that are chosen, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_runs import GREEDY, Run, write_config

from picoedge.engine.session import Prompter

THINKS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    "{{ mood }}"
)


@pytest.fixture
def packs(pack: Path, tmp_path: Path) -> Path:
    """A folder of two packs of one model: a thinking one, and one without a template."""
    for name, template in (("thinker", THINKS), ("bare", "")):
        shutil.copytree(pack, tmp_path / f"{name}.pico")
        (tmp_path / f"{name}.pico" / "chat_template.jinja").unlink()
        if template:
            (tmp_path / f"{name}.pico" / "chat_template.jinja").write_text(template)
    return tmp_path


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each prompt of a conversation."""
    made: list[str] = []
    chat_ids = Prompter.chat_ids

    def listen(self: Prompter, messages: list[dict[str, str]]) -> list[int]:
        ids = chat_ids(self, messages)
        made.append(self.tokenizer.decode(ids, skip_special=False))
        return ids

    monkeypatch.setattr(Prompter, "chat_ids", listen)
    return made


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ([], ""),
        (["--no-think"], "<think></think>"),
        (["--think"], ""),
        (["--template-var", "enable_thinking=false"], "<think></think>"),
        (["--template-var", "mood=glad"], "glad"),
        (
            ["--chat-template-kwargs", '{"mood": "sad", "enable_thinking": false}'],
            "<think></think>sad",
        ),
    ],
)
def test_options_of_thinking_reach_the_template(
    run: Run, packs: Path, prompts: list[str], words: list[str], end: str
) -> None:
    for command in ("chat", "generate"):
        ran = run(command, packs / "thinker.pico", "-p", "hi", "-n", "2", *words)
        assert (ran.code, ran.err) == (0, "")
    assert prompts == [f"[user]hi[assistant]{end}"] * 2


def test_a_model_without_a_switch_says_so(run: Run, pack: Path) -> None:
    ran = run("chat", pack, "-p", "hi", "-n", "2", "--no-think")
    assert ran.code == 0
    assert ran.err == "note: the chat template of tiny has no switch for thinking\n"


def test_thinking_and_history_as_settings(
    run: Run, packs: Path, pack: Path, prompts: list[str]
) -> None:
    write_config("think = false\nhistory = false\n")
    assert run("chat", packs / "thinker.pico", "-p", "hi", "-n", "2").code == 0
    assert prompts == ["[user]hi[assistant]<think></think>"]
    assert run("chat", pack, "-p", "hi", "-n", "2").err == ""  # it has no switch
    assert run("chat", pack, "--continue", "-p", "hi").code == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--template-var", "moood=1"], "reads no variable 'moood' (did you mean: mood?)"),
        (["--template-var", "mood"], "--template-var 'mood' has no value"),
        (["--chat-template-kwargs", "[1]"], "--chat-template-kwargs is no JSON object"),
        (["--chat-template-kwargs", "{" * 99], "--chat-template-kwargs is no JSON object"),
        (["--template-var", "messages=1"], "reads no variable 'messages'"),
        (["--chat-template", "chatlm"], "no chat template 'chatlm' (did you mean: chatml?)"),
    ],
)
def test_options_that_the_template_does_not_read_are_refused(
    run: Run, packs: Path, words: list[str], error: str
) -> None:
    ran = run("chat", packs / "thinker.pico", "-p", "hi", *words)
    assert (ran.code, ran.out) == (2, "")
    assert error in ran.err


def test_a_template_file_that_is_not_there_is_told(run: Run, packs: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    ran = run("chat", packs / "thinker.pico", "-p", "hi", "--chat-template", gone)
    assert (ran.code, ran.out) == (2, "")
    assert f"no chat template '{gone}' (a file, or one of alpaca, " in ran.err


def test_a_template_that_is_chosen_is_kept_with_the_pack(
    run: Run, packs: Path, prompts: list[str]
) -> None:
    bare = packs / "bare.pico"
    refused = run("chat", bare, "-p", "hi")
    assert refused.code == 1
    assert "--chat-template NAME gives it one" in refused.err
    assert run("chat", bare, "-p", "hi", "-n", "2", "--chat-template", "mistral").code == 0
    assert run("chat", bare, "-p", "hi", "-n", "2").code == 0
    assert prompts == ["[INST] hi [/INST]"] * 2
    shown = json.loads(run("show", bare, "--json").out)
    assert shown["chosen_template"] == str(packs / "bare.pico.chat_template.jinja")
    assert run("chat", bare, "-p", "hi", "-n", "2", "--chat-template", "own").code == 1
    assert "chosen_template" not in json.loads(run("show", bare, "--json").out)


def test_a_template_of_a_file(run: Run, packs: Path, prompts: list[str]) -> None:
    file = packs / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}!{% endfor %}")
    thinker = packs / "thinker.pico"
    assert run("chat", thinker, "-p", "hi", "-n", "2", "--chat-template", file).code == 0
    assert run("generate", thinker, "-p", "ho", "-n", "2").code == 0
    assert run("chat", thinker, "-p", "hi", "-n", "2", "--chat-template", "own").code == 0
    assert prompts == ["hi!", "ho!", "[user]hi[assistant]"]


def test_a_template_of_no_use_is_not_kept(run: Run, packs: Path) -> None:
    (packs / "deaf.jinja").write_text("nothing is said here")
    ran = run("chat", packs / "bare.pico", "-p", "hi", "--chat-template", packs / "deaf.jinja")
    assert ran.code == 1
    assert "drops the question" in ran.err
    assert not (packs / "bare.pico.chat_template.jinja").exists()


def test_show_tells_the_variables(run: Run, packs: Path) -> None:
    shown = json.loads(run("show", packs / "thinker.pico", "--json").out)
    assert shown["template_variables"] == ["enable_thinking", "mood"]
    assert "template variables  enable_thinking, mood" in run("show", packs / "thinker.pico").out


def test_an_answer_that_ends_in_text_stops_there(run: Run, packs: Path) -> None:
    ran = run(
        "generate", packs / "bare.pico", "-p", "hi", "-n", "3", "--chat-template", "alpaca",
        "--json", *GREEDY,
    )  # fmt: skip
    assert ran.code == 0
