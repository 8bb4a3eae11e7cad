"""Chat templates: what transformers renders, and what a hostile one gets."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from picoedge.errors import TextError
from picoedge.text.export.export import fallback_template
from picoedge.text.template.meter import Meter
from picoedge.text.template.template import ChatTemplate
from picoedge.text.tokenizer.base import TextSettings

TALK = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "What is «π»? {{ 7 * 7 }} <b>"},
    {"role": "assistant", "content": "<think>hm\n</think>\n\nA number. "},
    {"role": "user", "content": "中文 👩‍🚀"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": [1, None, True]}}}]

SPOKEN = """\
{#- the shape most models use, with the spaces that trim_blocks and lstrip_blocks eat #}
{{ bos_token }}
{% if tools is not none %}
    {% for tool in tools %}
        {{- tool | tojson }}{{ tool | tojson(indent=2) }}
    {% endfor %}
{% endif %}
{% for message in messages %}
    {% if loop.first and message.role == 'system' %}
        {% set system = message['content'] | trim %}
        {% continue %}
    {% endif %}
<|{{ message.role | upper }}|> {{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }}
{{ message['content'].split('</think>')[-1].lstrip('\\n') ~ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|ASSISTANT|>
{% endif %}
"""

REVERSED = """\
{%- macro shown(m, mark='*') -%}
    {{ mark ~ m.role }}: {{ m.content | replace('b', 'B') }}
{%- endmacro -%}
{%- set ns = namespace(last=-1, seen=[]) -%}
{%- for m in messages[::-1] -%}
    {%- set index = (messages | length - 1) - loop.index0 -%}
    {%- if m.role == 'user' and ns.last < 0 -%}{%- set ns.last = index -%}{%- endif -%}
    {%- set ns.seen = ns.seen + [m.role] -%}
    {%- if ns.seen | length > 2 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{{- ns.last }} {{ ns.seen }} {{ ns.seen | unique | join(', ') }} {{ ns.seen | sort | first }}
{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}
{{- messages | rejectattr('role', 'in', ['user', 'system']) | list | length }}
{%- for key, value in messages[0].items() %}{{ key }}={{ value | trim }};{% endfor %}
{%- generation %}{{ shown(messages[1]) }}{% endgeneration %}
{{- shown(messages[1], mark='%s-%d' % ('x', 3)) }}{{ '{}:{n:>3}'.format('a', n=7) }}
{{- missing }}{{ missing is defined }}{{ messages is iterable and messages is not string }}
{{- 2 ** 8 }} {{ 7 // 2 }} {{ -7 % 3 }} {{ 'ab' * 3 }} {{ 1.5 + 2 }} {{ [1] + [2] }} {{ (1, 'a') }}
{{- range(5) | list }}{{ {'a': 1} | items | list }}{{ dict(b=2) }}{{ 'x' in 'xyz' }}
{{- 'multi\\nline' | indent(2) }}{{ '3' | int + 1 }}{{ none | default('d', true) }}{{ 'a<b' | e }}
"""


def theirs(template: str, messages: list[dict[str, str]], **values: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        bos_token="<s>",
        eos_token="</s>",
        **values,
    )
    return str(texts[0])


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("template", [SPOKEN, REVERSED], ids=["spoken", "reversed"])
def test_renders_as_transformers_does(template: str, prompt: bool, tools: Any) -> None:
    ours = ChatTemplate(template, bos_token="<s>", eos_token="</s>")
    text = ours.render(TALK, add_generation_prompt=prompt, variables={"tools": tools})
    assert text == theirs(template, TALK, tools=tools, add_generation_prompt=prompt)
    assert "中文 👩‍🚀" in text


@pytest.mark.parametrize("family", ["gemma3", "qwen2", "llama"])
def test_family_templates_need_their_tokens(family: str) -> None:
    source = fallback_template(family, lambda token: True)
    assert source is not None
    text = ChatTemplate(source, bos_token="<s>").render(TALK)
    assert text.index("Be brief.") < text.index("What is «π»?") < text.index("中文 👩‍🚀")
    assert text == theirs(source, TALK, add_generation_prompt=True)
    assert fallback_template(family, lambda token: False) is None


def test_the_date_is_the_callers() -> None:
    def now() -> datetime.datetime:
        return datetime.datetime(2024, 7, 26)

    template = ChatTemplate("{{ strftime_now('%d %B %Y') }}", now=now)
    assert template.render([]) == "26 July 2024"


def test_loads_from_a_pack(tmp_path: Path) -> None:
    TextSettings(bos_token="<s>", eos_token="</s>").write(tmp_path)
    assert ChatTemplate.load(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}é{{ eos_token }}", "utf-8")
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render([]) == "<s>é</s>"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TextError, match="is not text"):
        ChatTemplate.load(tmp_path)


def test_a_template_may_refuse_the_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TextError, match="roles must alternate"):
        template.render(TALK)


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop.__class__ }}{% for m in messages %}{{ loop._iterable }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ messages[0].pop('role') }}",
    "{{ dict.fromkeys('ab') }}",
    "{{ dict.mro() }}",
    "{{ 'a'.encode() }}",
    "{{ (5).to_bytes(1, 'big') }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__ }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_refused(source: str) -> None:
    with pytest.raises(TextError, match="the chat template failed"):
        ChatTemplate(source).render(TALK)


# A list of lists is made a hundred times; each is the one before, twice.
DOUBLED = "{% set ns = namespace(x=START) %}{% for i in range(100) %}STEP{% endfor %}USE"


def doubled(start: str, step: str, use: str = "") -> str:
    return DOUBLED.replace("START", start).replace("STEP", step).replace("USE", use)


BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}" + "x" * 50_000 + "{% endfor %}",
    "{% macro f() %}" + "x" * 50_000 + "{% endmacro %}"
    "{% for i in range(100000) %}{% set a = f() %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [1] * 10**9 }}",
    "{% set x = 'a' * 100000 %}{{ x * 100000 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 10 ** 100000000 }}",
    "{{ ('9' * 1000000) | int }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ '\\t'.expandtabs(10**9) }}",
    "{% set s = 'a' * 100000 %}{{ s.join(s) }}",
    "{% set s = 'a' * 100000 %}{{ s | join(s) }}",
    "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "{% set s = 'a' * 100000 %}{{ s | replace('', s) }}",
    "{{ ('a\\n' * 100000) | indent(10**8) }}",
    "{{ ('a\\n' * 100000) | indent('x' * 100000) }}",
    "{{ [[1]] | tojson(indent=10**9) }}",
    "{{ 'x' | indent(-10**12) }}{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}",
    "{{ ('ab,' * 1000000).split(',') | length }}",
    "{{ strftime_now('%c' * 100000) }}",
    doubled("'a'", "{% set ns.x = ns.x ~ ns.x %}"),
    doubled("'a'", "{% set ns.x = ns.x + ns.x %}"),
    doubled("'a'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    doubled("[1]", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x }}"),
    doubled("[1]", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x == [ns.x] }}"),
    doubled("(1,)", "{% set ns.x = (ns.x, ns.x) %}", "{{ {ns.x: 1} }}"),
    doubled("{}", "{% set ns.x = dict(a=ns.x, b=ns.x) %}", "{{ ns.x | tojson }}"),
    "{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
    + doubled("(1,)", "{{ f(ns.x, ns.x) }}", "{{ ns.x }}"),
    "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{% set y = x[1:] %}{% endfor %}",
    "{% for i in range(1000) %}{% set x = range(100000) | list | sort %}{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "+".join(["1"] * 20_000) + " }}",
    "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "x" * 200_000,
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_bombs_end_in_an_error(source: str) -> None:
    with pytest.raises(TextError, match="chat template"):
        ChatTemplate(source).render(TALK)


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ x", "{{ a.b.c }}", "{{ 1 / 0 }}", "{{ messages['x'].y }}", "{{ {}[0].x }}"],
)
def test_broken_templates_say_so(source: str) -> None:
    with pytest.raises(TextError, match="the chat template failed"):
        ChatTemplate(source).render(TALK)


def test_a_long_conversation_is_no_bomb() -> None:
    messages = [{"role": "user", "content": f"{i} " + "words " * 100} for i in range(1000)]
    text = ChatTemplate(SPOKEN).render(messages)
    assert text.count("words") == 100_000


def test_circles_print_as_a_name() -> None:
    source = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x.x }}"
    assert ChatTemplate(source).render([]) == "<namespace>"


def test_the_meter_watches_the_clock() -> None:
    times = iter([0.0, 1.0, 6.0])
    meter = Meter(0, clock=lambda: next(times))
    meter.spend(1)
    with pytest.raises(TextError, match="takes longer than 5 s"):
        meter.spend(1)


def test_one_render_does_not_pay_for_another() -> None:
    template = ChatTemplate("{% for i in range(100000) %}{% endfor %}done")
    assert {template.render([]) for _ in range(5)} == {"done"}
