"""Templates render rows, name what is missing, and can neither reach out nor run away."""

import time

import pytest

from penstock.connectors.templates.bounds import MAX_OUTPUT
from penstock.connectors.templates.template import compile_template, render, value
from penstock.engine.errors import BadRecord, SpecError

ROW: dict[str, object] = {
    "text": "hello",
    "n": 3,
    "null": None,
    "turns": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
    "order": {"items": 5, "copy": True, "a b": 1},
    "odd name": "x",
    "big": "x" * 1_000_000,
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Say {{ text }}, {{ n }} times", "Say hello, 3 times"),
        ("{{ text | upper | replace('L', 'l') }}", "HEllO"),
        (
            "{% for turn in turns %}{{ loop.index }}:{{ turn.role }}{{ ', ' if not loop.last }}{% endfor %}",
            "1:user, 2:assistant",
        ),
        ("{% if n > 2 and text in ['hello'] %}yes{% endif %}", "yes"),
        ("{{ order.items }} {{ order['copy'] }} {{ order['a b'] }}", "5 True 1"),
        ("{% for key, one in order.items() %}{% endfor %}ok", None),
        ("{% for key, one in order | items %}{{ key }}{{ one }} {% endfor %}", "items5 copyTrue a b1 "),
        ("{{ row['odd name'] }}", "x"),
        ("{{ vars.date }}", "2026-11-24"),
        ("{{ null or '-' }}{{ missing | default('-') }}", "--"),
        ("{{ turns | map(attribute='role') | join('|') }}", "user|assistant"),
        ("{{ turns | tojson }}", '[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]'),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(n) }}{{ m(text) }}", "<3><hello>"),
        ("{% set ns = namespace(k=1) %}{% for i in range(3) %}{% set ns.k = ns.k * 2 %}{% endfor %}{{ ns.k }}", "8"),
        ("{{ text.split('l') | length }} {{ text[:2] }} {{ text ~ n }}", "3 he hello3"),
    ],
)
def test_ordinary_templates_work(source: str, text: str | None) -> None:
    """Data comes before methods of the same name; `row` and `vars` are there."""
    if text is None:
        with pytest.raises(BadRecord):
            render(source, ROW)
    else:
        assert render(source, ROW, {"date": "2026-11-24"}) == text


def test_a_lone_expression_keeps_its_type() -> None:
    """`{{ x }}` is the column itself; with anything beside it, it is text."""
    assert value("{{ turns }}", ROW) is ROW["turns"]
    assert value(" {{ n + 1 }}\n", ROW) == 4
    assert value("{{ null }}", ROW) is None
    assert value("n{{ n }}", ROW) == "n3"
    assert value("constant", ROW) == "constant"


def test_a_missing_column_is_named_with_the_nearest() -> None:
    """In text, in a lone expression, and deeper."""
    for call in (render, value):
        with pytest.raises(BadRecord, match=r"'txet'.*nearest is 'text'") as caught:
            call("{{ txet }}", ROW)
        assert caught.value.reason == "missing_field"
    with pytest.raises(BadRecord, match="'subject'") as caught:
        render("{{ order.subject }}", ROW)
    assert caught.value.reason == "missing_field"


def test_a_null_is_not_printed() -> None:
    """`None` in a prompt would be paid for: it is a dead letter, unless the template says what it means."""
    with pytest.raises(BadRecord, match="null") as caught:
        render("Text: {{ null }}", ROW)
    assert caught.value.reason == "bad_field"


@pytest.mark.parametrize("inner", ["'inf' | float | int", "'1e400' | float | round | int"])
def test_a_number_that_is_none_fails_on_its_row(inner: str) -> None:
    """Also where it is made of constants alone: a dead letter, not a lane that ends."""
    for source in ("{{ " + inner + " }}", "n {{ " + inner + " }}"):
        for call in (render, value):
            with pytest.raises(BadRecord, match="cannot convert") as caught:
                call(source, ROW)
            assert caught.value.reason == "template"
    assert render("{{ 'inf' | float }}", ROW) == "inf"


def test_columns_are_known_before_anything_runs() -> None:
    """For `validate`: what a template needs from the row."""
    assert compile_template("{{ a }} {{ vars.x }} {% for b in c %}{{ b }}{{ range(2) }}{% endfor %}").columns == {
        "a",
        "c",
    }


@pytest.mark.parametrize(
    "source",
    [
        "{{ text.__class__.__mro__ }}",
        "{{ text['__class__'] }}",
        "{{ turns | map(attribute='__class__') | list }}",
        "{{ range.__globals__ }}",
        "{{ loop.__init__ }}",
        "{% for t in turns %}{{ loop.__class__ }}{% endfor %}",
        "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ turns.append(1) }}",
        "{{ order.update({}) }}",
        "{{ turns.pop() }}",
        "{{ dict.mro() }}",
        "{{ namespace.__init__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner }}",
        "{{ self }}",
        "{{ text.upper }}",
        "{{ turns | map('upper') }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ text.encode() }}",
        "{{ '%s' % text }}",
    ],
)
def test_nothing_reaches_beyond_the_row(source: str) -> None:
    """Attributes, functions and objects of the interpreter are dead letters, as are objects that would be printed."""
    with pytest.raises(BadRecord):
        render(source, ROW)


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% import 'x' as x %}",
        "{% from 'x' import y %}",
        "{% block x %}{% endblock %}",
        "{% for x in turns recursive %}{{ loop(x) }}{% endfor %}",
        "{{ text | attr('upper') }}",
        "{{ text | center(10) }}",
        "{{ text | format }}",
        "{{ text",
        "{% for %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "9" * 6000 + " }}",
        "{{ 1e999 | int }}",
        "x" * 70_000,
        "\ud800",
        "{{ '\\ud800' }}",
    ],
)
def test_what_has_no_place_in_a_prompt_is_refused_before_the_run(source: str) -> None:
    """A spec error that says what and where."""
    with pytest.raises(SpecError):
        compile_template(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999999999) %}{% endfor %}",
        "{% for a in big %}{% endfor %}",
        "{% for a in range(1000) %}{% for b in turns | map('upper') %}{% for c in range(99) %}" + "{% endfor %}" * 3,
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f(n) %}" + "y" * 9000 + "{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(13) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * [0] }}",
        "{{ 9 ** 9999999 }}",
        "{{ (2 ** 4000) * (2 ** 4000) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ text | indent(1000000000) }}",
        "{{ 1.5 | round(1000000000) }}",
        "{{ big | replace('x', big) }}",
        "{{ range(100000) | join(big) }}",
        "{{ [[1]] * 10 | sum }}",
        "{% set a = 'xxxxxxxx' %}" + "{% set a = a ~ a %}" * 40 + "{{ a | length }}",
        "{% set a = 'xxxxxxxx' %}" + "{% set a = a + a %}" * 40 + "{{ a | length }}",
        "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
        "{% set a = [1] %}" + "{% set a = (a, a) %}" * 60 + "{{ a | tojson }}",
        "{% set a = {'k': 1} %}" + "{% set a = dict(a=a, b=a) %}" * 60 + "{{ a | string }}",
        "{% set a %}xxxxxxxx{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40,
        "{% for i in range(90000) %}" + "y" * 1000 + "{% endfor %}",
        "{% set a %}{% for i in range(90000) %}" + "y" * 1000 + "{% endfor %}{% endset %}",
        "{{ big }}{{ big }}",
        "{{ big }}{{ big | upper }}",
        "{% for i in range(50000) %}{{ big | upper | length }}{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ turns + 1 }}",
        "{{ text.index('q') }}",
    ],
)
def test_no_template_runs_away(source: str) -> None:
    """Loops, recursion, growth and errors end as a dead letter, soon, and without the memory that they ask for."""
    started = time.process_time()
    with pytest.raises(BadRecord):
        render(source, ROW)
    assert time.process_time() - started < 3


def test_bounds_are_per_rendering() -> None:
    """A template that stays within them does so every time."""
    source = "{% for i in range(60000) %}{{ i }}{% endfor %}"
    first = render(source, ROW)
    assert render(source, ROW) == first
    assert len(first) < MAX_OUTPUT
