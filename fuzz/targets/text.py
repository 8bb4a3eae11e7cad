"""Chat templates, which are programs of strangers, and texts that people type."""

from __future__ import annotations

import re
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
TEMPLATES = sorted((Path(__file__).parents[1] / "samples").glob("*.jinja"))
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


SNIPPETS = (
    "{{ 'a{}b{:>3}'.format(1, 2) }}",
    "{{ '%s %d' % ('a', 1) }}",
    "{{ 'ab' * 3 }}",
    "{{ 3 * 'ab' }}",
    "{{ 2 ** 8 }}",
    "{{ 2 ** -1 }}",
    "{{ 7 // 2 }}",
    "{{ 7 % 0 }}",
    "{{ [1] + [2] }}",
    "{{ 1 + 'a' }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ messages | tojson(indent=-1) }}",
    "{{ 'a' | e }}",
    "{{ 'aa' | replace('a', 'bb') }}",
    "{{ 'aa'.replace('a', 'bb', 1) }}",
    "{{ 'a,b'.split(',') }}",
    "{{ ['a', 'b'] | join('-') }}",
    "{{ '-'.join(['a', 'b']) }}",
    "{{ namespace(a=1) }}",
    "{{ 'a' ~ 1 }}",
    "{{ 'x'.center(5) }}",
    "{{ 'x'.ljust(5) }}",
    "{{ '7'.zfill(4) }}",
    "{{ 'a\\tb'.expandtabs(8) }}",
    "{{ nothing | default('q') }}",
    "{{ nothing.inner }}",
    "{{ nothing() }}",
    "{{ messages.pop() }}",
    "{{ messages | map(attribute='role') | list }}",
    "{{ messages | selectattr('role', 'equalto', 'a') | list }}",
    "{{ messages | rejectattr('content') | first }}",
    "{{ 'abc' | batch(2) | list }}",
    "{{ 'abc' | slice(2) | list }}",
    "{{ 'a b' | wordwrap(1) }}",
    "{{ 'a' | indent(4) }}",
    "{{ 'a' | center(9) }}",
    "{{ 'abc' | truncate(2) }}",
    "{{ {'a': 1} | dictsort }}",
    "{{ {'a': 1}.items() | list }}",
    "{{ {'a': 1}.update({'b': 2}) }}",
    "{{ dict(a=1) }}",
    "{{ range(5) | list }}",
    "{{ range(100000) | sum }}",
    "{{ [3, 1] | sort | first }}",
    "{{ 'a'.encode() }}",
    "{{ 'ab'.translate({97: 'x'}) }}",
    "{{ ''.__class__ }}",
    "{{ 'a' | attr('__class__') }}",
    "{{ raise_exception('x') }}",
    "{% for a in range(3) recursive %}{{ loop(a) }}{% endfor %}",
    "{% for a in 'abc' if a != 'b' %}{{ a }}{% else %}{% endfor %}",
    "{% set a = 'x' %}{% for i in range(60) %}{% set a = a + a %}{% endfor %}",
    "{% set ns = namespace(a='x') %}"
    "{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% call(x) f() %}{% endcall %}",
    "{% filter upper %}a{% endfilter %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% block a %}b{% endblock %}",
    "{% do [].append(1) %}",
    "{% set x %}a{% endset %}{{ x }}",
    "{% with a = 1 %}{{ a }}{% endwith %}",
    "{% if a is defined %}{{ a }}{% endif %}",
    "{% generation %}a{% endgeneration %}",
    "{% break %}",
    "{{ strftime_now('%Y') }}",
    "{{ strftime_now('%Y' * 99) }}",
    "{% for a in 'ab' %}{% if loop.first %}{% continue %}{% endif %}{{ a }}{% endfor %}",
    "{% for r in messages | groupby('role') %}{{ r.grouper }}{% endfor %}",
    "{{ 9 | float | round(2) }}",
    "{{ 10 ** 999 }}",
    "{{ 'a' in 'abc' and 1 not in [2] }}",
    "{{ messages[0].content[1:5:2] }}",
    "{{ 1 if 2 }}",
    "{{ lipsum() }}",
    "{{ cycler(1) }}",
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


def mutated_template(rng: Random, samples: Sequence[bytes]) -> bytes:
    text = rng.choice(samples).decode()
    if rng.randrange(3):
        return with_snippets(rng, text).encode("utf-8", "replace")
    return mutate_text(rng, text, PARTS).encode("utf-8", "replace")


def with_snippets(rng: Random, text: str) -> str:
    """A template with statements of another put between its own, their numbers changed."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        ends = [0, *(match.end() for match in re.finditer(r"[%}]}", text))]
        snippet = rng.choice(SNIPPETS)
        if rng.randrange(3) == 0:
            number = rng.choice(("0", "-1", "3", "70", "999999999", "1e9", "10**9"))
            snippet = re.sub(r"\d+", number, snippet, count=1)
        at = rng.choice(ends)
        text = text[:at] + snippet + text[at:]
    return text


TEXT = (
    Target(
        "template",
        _template,
        lambda: [path.read_bytes() for path in TEMPLATES],
        mutated_template,
        ("text/template/sandbox.py", "text/template/meter.py"),
        weight=2,
    ),
)
