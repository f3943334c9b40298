"""Rendering: what transformers renders, and a sandbox that a hostile template does not leave."""

import re
import time
from pathlib import Path

import jinja2
import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from jaxinfer import chat_template

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a <place> & time, in °C",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Köln"}}}
TEMPLATES = sorted(Path(__file__).with_name("chat_templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def random_messages(rng: np.random.Generator) -> list[dict]:
    """A conversation of one to four turns, sometimes with a system message, tools, reasoning."""
    messages = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": " Be <brief>. "})
    for turn in range(int(rng.integers(1, 5))):
        messages.append({"role": "user", "content": f" question {turn} 'a' & \"b\" 😀\n"})
        if rng.random() < 0.3:
            messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})
            messages.append({"role": "tool", "content": "12 °C", "name": None})
        answer = {"role": "assistant", "content": f"<think>\nhm {turn}\n</think>\n\nanswer\n"}
        if rng.random() < 0.4:
            field = ["thinking", "reasoning", "reasoning_content"][rng.integers(3)]
            answer = {"role": "assistant", "content": "answer", field: "\nbecause"}
        messages.append(answer)
    return messages[: len(messages) - int(rng.integers(2))]


def test_templates_are_there():
    assert len(TEMPLATES) >= 8


def transformers_text(template: str, messages: list[dict], **variables) -> tuple[str, str]:
    """What transformers makes of a chat: a text, or the template's refusal."""
    try:
        rendered, _ = render_jinja_template([messages], chat_template=template, **variables)
    except jinja2.TemplateError as cause:
        return "", str(cause)
    return rendered[0], ""


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_renders_what_transformers_renders(path):
    template = path.read_text(encoding="utf-8")
    rendered = 0
    for seed in np.random.default_rng().integers(2**32, size=25):
        rng = np.random.default_rng(seed)
        messages = random_messages(rng)
        options = {
            "tools": [TOOL] if rng.random() < 0.4 else None,
            "add_generation_prompt": bool(rng.integers(2)),
        }
        extra = dict(SPECIAL)
        if rng.random() < 0.5:
            extra["enable_thinking"] = bool(rng.integers(2))
        dropped = [{k: v for k, v in m.items() if v is not None} for m in messages]
        expected, refusal = transformers_text(template, dropped, **options, **extra)
        if refusal:
            with pytest.raises(ValueError, match=re.escape(refusal)):
                chat_template.render(template, messages, documents=None, **options, **extra)
            continue
        rendered += 1
        received = chat_template.render(template, messages, documents=None, **options, **extra)
        assert received == expected, f"{seed=}"
    assert rendered > 0


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{{ range(10000000000) | list }}",
    "times": "{{ 'x' * 1000000000 }}",
    "list times": "{{ [1] * 1000000000 }}",
    "power": "{{ 9 ** 9999999 }}",
    "concat": "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "plus": "{% set ns = namespace(s='aaaa') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "set": "{% set s = 'aaaa' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
    "text in loops": "{% set s %}{% for i in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endset %}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "indent": "{{ 'a\\nb' | indent(1000000000) }}",
    "json indent": "{{ [1] | tojson(indent=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ ['a' * 1000000] * 1000 | join }}{{ (['a' * 1000000] * 1000) | join }}",
    "join method": "{{ ('b' * 1000000).join(['a'] * 1000) }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__.keys() }}",
    "function": "{{ messages.append.__self__ }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "mutation": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_an_error(name):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="chat template"):
        chat_template.render(HOSTILE[name], [{"role": "user", "content": "x"}])
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for", "line 1"),
        ("a\n{{ messages[0].content | nofilter }}", "nofilter"),
        ("{{ messages[0].content.nothing.more }}", "nothing"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ raise_exception('system role is not for this model') }}", "system role is not"),
        ("x" * (chat_template.MAX_TEMPLATE_CHARS + 1), "at most"),
    ],
)
def test_template_errors_are_one_clear_error(template, part):
    with pytest.raises(ValueError, match=r"chat template: required.*received") as caught:
        chat_template.render(template, [{"role": "user", "content": "x"}])
    assert part in str(caught.value)


def test_messages_must_be_json():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for messages in ([], ["text"], [{"role": "user", "content": object()}], [{"content": deep}]):
        with pytest.raises(ValueError, match="messages: required"):
            chat_template.render("{{ messages }}", messages)


def test_a_key_without_a_value_is_no_key():
    """`content: null` comes with tool calls; templates know only a missing key."""
    template = "{% for m in messages %}{{ m.content is defined }} {{ m | length }} {% endfor %}"
    messages = [{"role": "user", "content": None, "x": 1}, {"role": "user", "content": ""}]
    assert chat_template.render(template, messages) == "False 2 True 2 "


def test_the_date_is_today():
    before = time.strftime("%d %b %Y")
    text = chat_template.render("{{ strftime_now('%d %b %Y') }}", [{"role": "user"}])
    assert text in (before, time.strftime("%d %b %Y"))


def test_budgets_are_for_one_rendering():
    template = "{% for n in range(99999) %}{% endfor %}ok"
    for _ in range(30):
        assert chat_template.render(template, [{"role": "user", "content": ""}]) == "ok"
