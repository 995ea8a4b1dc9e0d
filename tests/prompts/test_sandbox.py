"""Hostile templates: none reaches Python, changes what it is given, or runs or grows without end."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path

import pytest

from litgpt.errors import LitGPTError
from litgpt.prompts import rendering
from litgpt.prompts.chat_template import Template

LONG = "{% set s = 'a' * 1000000 %}"
MANY = "{% set many = range(100000)|list %}"
TREE = "{% set t = ['a'] %}" + "{% set t = [t, t] %}" * 45
"""A list that stands in itself twice, 45 levels deep: little memory, 2⁴⁵ letters as text."""
TREES = TREE + "{% set u = ['a'] %}" + "{% set u = [u, u] %}" * 45
HUGE = "{% set n = namespace(x=9) %}{% for i in range(26) %}{% set n.x = n.x * n.x %}{% endfor %}"
"""A number of some 200 million bits."""
KEPT = "{% set n = namespace(l=[]) %}"

ENDLESS = {
    "loops in loops": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "text in loops": "{% for a in range(100000) %}" + "y" * 20000 + "{% endfor %}",
    "long range": "{% for a in range(100000000) %}x{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "deep macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "calls": MANY + "{% for i in many %}{% for j in many %}{% set x = 'a'.upper() %}{% endfor %}{% endfor %}",
    "filters": MANY + "{% for i in many %}{% set x = many|map('string')|list %}{% endfor %}",
    "searches": MANY + "{% for i in many %}{% if 'a' in many %}{% endif %}{% endfor %}",
    "copies": MANY + "{% set n = namespace(l=[]) %}{% for i in many %}{% set n.l = n.l + [many[:]] %}{% endfor %}",
    "recursion": TREE + "{% for x in t recursive %}{% if x is not string %}{{ loop(x) }}{% endif %}{% endfor %}",
}
TOO_LARGE = {
    "times": "{{ 'a' * 1000000000000 }}",
    "times a text": "{{ 1000000000000 * 'a' }}",
    "lists": "{{ ([1] * 1000000000000)|length }}",
    "power": "{{ (10 ** 10) ** (10 ** 10) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(1000) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling by +": "{% set s = 'aa' %}" + "{% set s = s + s %}" * 45,
    "doubling by ~": "{% set s = 'aa' %}" + "{% set s = s ~ s %}" * 45,
    "doubling by output": "{% set s = 'aa' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 45,
    "doubling lists": "{% set s = ['a'] %}" + "{% set s = s + s %}" * 45,
    "printing a tree": TREE + "{{ t }}",
    "printing a namespace": TREE + "{{ namespace(t=t) }}",
    "a tree as JSON": TREE + "{{ t|tojson }}",
    "a tree as text": TREE + "{% set x = t|string %}",
    "a tree in capitals": TREE + "{% set x = t|upper %}",
    "a tree joined": TREE + "{% set x = t|join %}",
    "a tree appended": TREE + "{% set x = 'a' ~ t %}",
    "a tree formatted": TREE + "{% set x = '%s' % [t] %}",
    "a tree in braces": TREE + "{% set x = '{}'.format(t) %}",
    "center": "{{ 'a'|center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "zfill": "{{ '1'.zfill(10000000000) }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(10000000) }}",
    "width": "{{ '%10000000000d' % 1 }}",
    "width given": "{{ '%*d' % (10000000000, 1) }}",
    "width in braces": "{{ '{:>10000000000}'.format(1) }}",
    "width given in braces": "{{ '{:>{w}}'.format(1, w=10000000000) }}",
    "width by filter": "{{ '%10000000000d'|format(1) }}",
    "indent": "{{ ('a\n' * 100000)|indent(1000000) }}",
    "JSON indent": "{{ messages|tojson(indent=10000000000) }}",
    "replace": LONG + "{{ s|replace('a', s) }}",
    "replace by method": LONG + "{{ s.replace('a', s) }}",
    "join": LONG + "{{ range(100000)|join(s) }}",
    "join by method": LONG + "{{ s.join(['a'] * 100000) }}",
    "batch": "{{ ['a']|batch(10000000000, 'x')|list }}",
    "slice": "{{ ['a']|slice(10000000000, 'x')|list }}",
    "round up": "{{ 3|round(999999999, 'ceil') }}",
    "remainder": HUGE + "{{ n.x % (n.x - 1) }}",
    "quotient": HUGE + "{{ (n.x * n.x) // (n.x - 1) }}",
    "difference": HUGE + "{% for i in range(1000) %}{% set n.x = n.x * n.x - 1 %}{% endfor %}",
    "equal trees": TREES + "{{ t == u }}",
    "a tree in a list": TREES + "{{ t in [u] }}",
    "smaller trees": TREES + "{{ t < u }}",
    "sorted trees": TREES + "{{ [t, u, t]|sort }}",
    "tests of trees": TREES + "{{ [t]|select('eq', u)|list }}",
    "a tree as key": "{% set t = (1,) %}" + "{% set t = (t, t) %}" * 45 + "{{ {t: 1} }}",
    "a deep key": "{% set n = namespace(t=()) %}{% for i in range(99999) %}{% for j in range(99) %}"
    "{% set n.t = (n.t,) %}{% endfor %}{% endfor %}{{ {n.t: 1} }}",
    "kept lists": KEPT + "{% for i in range(99999) %}{% set n.l = [n.l, range(99999)|list] %}{% endfor %}",
    "kept texts": KEPT + "{% for i in range(99999) %}{% set n.l = [n.l, 'é' * (9999 + i)] %}{% endfor %}",
    "a date": "{{ strftime_now('%A' * 100000000) }}",
    "a wide date": "{% for i in range(99999) %}{{ strftime_now('%99999999Y') }}{% endfor %}",
    "words": LONG + "{% for i in range(9999) %}{{ s|title|wordcount }}{% endfor %}",
    "quotes": LONG + "{% for i in range(9999) %}{{ (s * 90)|urlencode|e|upper }}{% endfor %}",
    "numbers": "{% for i in range(99999) %}{{ ('9' * 4000)|int ** 999 }}{% endfor %}",
}
FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by key": "{{ messages['__class__']['__mro__'] }}",
    "class by filter": "{{ (''|attr('__class__')).__mro__ }}",
    "class in a format": "{{ '{0.__class__.__mro__}'.format('a') }}",
    "class in a format map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "globals": "{{ raise_exception.__globals__.keys() }}",
    "globals of a class": "{{ cycler.__init__.__globals__.os }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "methods of a type": "{{ dict.mro() }}",
    "changing a list": "{{ messages.append(1) }}",
    "changing a table": "{{ messages[0].update({'role': 'x'}) }}",
    "changing through a type": "{{ dict.update(messages[0], {'role': 'x'}) }}",
    "names on a namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "names of a namespace": "{% set n = namespace(__html__=1) %}",
    "files": "{% import '/etc/passwd' as x %}{{ x }}",
    "bytes": "{{ 'a'.encode('utf-8') }}",
    "translation": "{{ 'a'.translate({97: 'b'}) }}",
}


def refusal(source: str) -> str:
    with pytest.raises(LitGPTError) as raised:
        Template("{{ 0 }}" + source, {}, "The template").render([{"role": "user", "content": "Hi"}])
    return str(raised.value)


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """Smaller ones, to be there soon."""
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.15)
    monkeypatch.setattr(rendering, "MAX_BYTES", 100_000_000)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_never_ends_is_stopped(name):
    sentence = refusal(ENDLESS[name])
    assert any(reason in sentence for reason in ("without end", "Range too big", "recursion"))


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_template_that_grows_without_end_is_stopped(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "without end" in refusal(TOO_LARGE[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_template_reaches_nothing_but_its_data(name):
    assert "The template refuses this conversation" in refusal(FORBIDDEN[name])


def test_what_a_template_is_given_stays_as_it_was():
    messages = [{"role": "user", "content": ["a"], "more": {"b": [1]}}]
    refusal("{{ messages[0].more.b.append(2) }}")
    Template("{{ messages|tojson }}", {}, "The template").render(messages)
    assert messages == [{"role": "user", "content": ["a"], "more": {"b": [1]}}]


def test_a_long_conversation_is_within_the_limits(monkeypatch):
    monkeypatch.setattr(rendering, "MAX_SECONDS", 2.0)
    source = (
        "{% macro show(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}"
        "{% set n = namespace(text='', last=0) %}"
        "{% for m in messages %}{% if 'x' in m.content.split('\n')[0] %}{% set n.last = loop.index0 %}{% endif %}"
        "{{ show(m) ~ '\n' }}{% set n.text = n.text + m.content[:10] %}{% endfor %}{{ n.last }}{{ n.text|length }}"
    )
    messages = [{"role": "user", "content": "x words and more\n" * 100}] * 2000
    text = Template(source, {}, "The template").render(messages)
    assert text.endswith("199920000")


def test_the_limits_are_of_one_rendering(monkeypatch):
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.6)
    template = Template("{% for i in range(5000) %}{{ 'abcdefghij' * 100 }}{% endfor %}", {}, "The template")
    for _ in range(12):
        assert len(template.render([{"role": "user"}])) == 5_000_000


def test_a_template_sees_no_token_of_the_user(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    renderer = rendering.TemplateProcess()
    try:
        environment = Path(f"/proc/{renderer.pid}/environ")
        if not environment.exists():
            pytest.skip("needs /proc")
        assert renderer.ask("{{ 1 }}", {})["text"] == "1"
        assert b"hf_secret" not in environment.read_bytes()
    finally:
        renderer.close()


def test_a_process_that_was_ended_while_idle_is_replaced():
    template = Template("{{ messages[0].content }}", {}, "The template")
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    for _ in range(2):
        assert template.render([{"role": "user", "content": "a"}]) == "a"
        for child in map(int, children.read_text().split()):
            if b"sandbox.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


def test_threads_and_forked_processes_have_renderers_of_their_own():
    template = Template("{{ messages[0].content }}", {}, "The template")

    def texts(word: str) -> list[str]:
        return [template.render([{"role": "user", "content": word}]) for _ in range(50)]

    found: dict[str, list[str]] = {}
    threads = [threading.Thread(target=lambda word=word: found.update({word: texts(word)})) for word in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {word: [word] * 50 for word in "abc"}
    child = os.fork()
    if not child:
        os._exit(texts("d") != ["d"] * 50)
    assert texts("e") == ["e"] * 50
    assert os.waitpid(child, 0)[1] == 0
