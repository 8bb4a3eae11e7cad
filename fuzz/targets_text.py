"""Chat templates, which are programs of strangers, and texts that people type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import mutate_text
from fuzz.target import Run, Target
from picoedge.text.template.template import ChatTemplate

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|im_end|> {{ 7 * 7 }}"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]
TEMPLATES = sorted((Path(__file__).parent / "samples").glob("*.jinja"))
PARTS = (
    "{% for i in range(1000000000) %}",
    "{% for x in messages %}",
    "{% endfor %}",
    "{% if ",
    "{% endif %}",
    "{{ ",
    " }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ self }}",
    "{{ cycler }}",
    "{{ lipsum() }}",
    "{{ messages.__init__ }}",
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 9**9**9 }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{% set x = x + x %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% filter upper %}",
    "{% call f() %}",
    "{% raw %}",
    "{#",
    "#}",
    "| tojson",
    "| map('upper') | list",
    "| join(',' * 10**8)",
    "| batch(10**9)",
    "| indent(10**8)",
    "| sort | unique",
    "| replace('', 'a' * 1000)",
    ".append(messages)",
    "{% do x %}",
    "loop.cycle",
    "{% break %}",
    "{% continue %}",
    "namespace()",
    "| random",
    "| attr('__class__')",
    "{% set ns.x = ns %}",
    "~",
    "[::-1]",
    "[-1]",
    "//0",
    "%0",
    "**-1",
    "is defined",
    "not in",
    "dict(a=1)",
    "{% trans %}",
    "| groupby('role')",
    "{% with a=messages %}",
    "{% endwith %}",
    "\ud800",
    "\0",
    "joiner()",
    "| xmlattr",
    "| format(1,2)",
    "| sum(start=[])",
    "| center(10**9)",
    "| slice(10**9) | list",
    "| wordwrap(1)",
    "| urlize",
    "| truncate(-1)",
)


def _template(folder: Path) -> Run:
    """A template is read, compiled and rendered, as a file from a stranger is."""

    def run(data: bytes) -> None:
        template = ChatTemplate(data.decode("utf-8", "replace"), bos_token="<s>", eos_token="</s>")
        text = template.render(MESSAGES)
        assert isinstance(text, str)
        template.render(
            MESSAGES[1:], variables={"enable_thinking": False, "tools": [{"type": "function"}]}
        )

    return run


def _mutated(rng: Random, samples: Sequence[bytes]) -> bytes:
    text = rng.choice(samples).decode()
    return mutate_text(rng, text, PARTS).encode("utf-8", "replace")


TEXT = (
    Target(
        "template",
        _template,
        lambda: [path.read_bytes() for path in TEMPLATES],
        _mutated,
        ("text/template/sandbox.py", "text/template/meter.py", "text/template/template.py"),
        weight=2,
    ),
)
