"""The sandbox that templates run in: nothing reaches the interpreter, no loop or call runs for ever, and no value
outgrows its bound. Allowed are the filters, functions, methods and attributes listed here; nothing else.

How: every `for`, `~` and literal container is wrapped when a template is compiled; filters, calls, operators and
printed values are charged while it runs, against one `Meter` a rendering.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import msgspec
from jinja2 import TemplateError, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context, Undefined
from jinja2.utils import Namespace

MAX_STEPS = 100_000
"""Loop rounds and calls of one rendering together. A prompt of 10,000 lines needs 10,000."""
MAX_OUTPUT = 1_000_000
"""Characters of one rendering, captured pieces included: four times the longest context there is."""
MAX_WORK = 100_000_000
"""Characters that filters, calls and operators of one rendering may go through: about 0.1 s."""
CONTAINER_WORK = 200
"""What walking through one list or object counts as: half a million of them take 0.1 s."""
MAX_BITS = 4096
"""Size of a whole number that an operator may make."""


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLAIN_FILTERS = words(
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse select selectattr sort title trim truncate unique upper wordcount"
)


class Bound(TemplateError):
    """The template went over a bound."""


class Meter:
    """What one rendering may still use. `text`: constant characters of the template, charged for each macro call."""

    __slots__ = ("output", "steps", "text", "work")

    def __init__(self, text: int = 0) -> None:
        self.text = text
        self.steps = MAX_STEPS
        self.output = MAX_OUTPUT
        self.work = MAX_WORK

    def step(self, count: int, text: int) -> None:
        self.steps -= count
        if self.steps < 0:
            raise Bound(f"it takes more than {MAX_STEPS:,} loop rounds and calls")
        self.print(count * text)

    def print(self, size: int) -> None:
        self.output -= size
        if self.output < 0:
            raise Bound(f"it makes more than {MAX_OUTPUT:,} characters")

    def go_through(self, size: int) -> None:
        self.work -= size
        if self.work < 0:
            raise Bound(f"its filters and operators go through more than {MAX_WORK:,} characters")


class _Local(threading.local):
    def __init__(self) -> None:
        self.meter = Meter()


local = _Local()


def begin(text: int) -> None:
    """A new rendering begins in this thread."""
    local.meter = Meter(text)


def size_of(value: object) -> int:
    return len(value) if isinstance(value, Sized) and not isinstance(value, Undefined) else 1


def _show(value: object) -> str:
    """`str(value)`, refused where containers hold each other so often that the text explodes."""
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list, tuple)):
        _weigh(value)
    return str(value)


def _weigh(value: object) -> None:
    """Walks the value as its text would, against the work bound."""
    meter = local.meter
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            meter.go_through(len(one))
        elif isinstance(one, Mapping):
            meter.go_through(CONTAINER_WORK)
            waiting.extend(one.keys())
            waiting.extend(one.values())
        elif isinstance(one, (list, tuple)):
            meter.go_through(CONTAINER_WORK + len(one))
            waiting.extend(one)
        elif isinstance(one, Undefined):
            str(one)  # raises, naming it


def _bounded(value: Any, text: int) -> Iterable[object]:
    """Stands around what every `for` goes through: charges its rounds (`text`: constant characters of one round)."""
    if isinstance(value, Undefined):
        return iter(value)
    if isinstance(value, (list, dict, tuple, str, range)):
        local.meter.step(len(value), text)
        return value
    return _counted(iter(value), text)


def _counted(values: Iterator[object], text: int) -> Iterator[object]:
    for value in values:
        local.meter.step(1, text)
        yield value


@pass_context
def printed(_context: Context, value: object) -> object:
    """Jinja's finalizer: sees every printed value."""
    if isinstance(value, Undefined):
        return value  # `str` of it raises, naming it
    if value is None:
        raise NullPrinted("a value that it prints is null (write `{{ x or '' }}` where that is meant)")
    if not isinstance(value, (str, int, float, list, dict, tuple)):
        hint = ": is a call's () missing?" if callable(value) else "; write `| list` behind it" if _lazy(value) else ""
        raise Bound(f"it would print a {type(value).__name__}{hint}")
    text = _show(value)
    local.meter.print(len(text))
    return text


def _lazy(value: object) -> bool:
    return isinstance(value, Iterable)


class NullPrinted(TemplateError):
    """A null would be printed."""


def _charged(name: str) -> Callable[..., object]:
    """Jinja's own filter, charged for what it goes through."""
    inner: Any = FILTERS[name]

    def charged(*args: Any, **named: Any) -> object:
        for value in (*args, *named.values()):
            if isinstance(value, (str, list, dict, tuple)):
                local.meter.go_through(len(value))
        return inner(*args, **named)

    if (mark := getattr(inner, "jinja_pass_arg", None)) is not None:
        vars(charged)["jinja_pass_arg"] = mark
    return charged


def _replace(value: object, old: str, new: str, count: int | None = None) -> str:
    text = _show(value)
    found = text.count(old) if count is None else min(text.count(old), count)
    _grown(len(text) + found * (len(new) - len(old)))
    return text.replace(old, new, -1 if count is None else count)


def _join(value: Iterable[object], separator: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        raise Bound("join takes no attribute here: write `x | map(attribute='…') | join`")
    parts = [_show(one) for one in value]
    _grown(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _tojson(value: object) -> str:
    _weigh(value)
    return msgspec.json.encode(value).decode()


def _sum(value: Iterable[float], start: float = 0) -> float:
    total = start
    for one in value:
        if not isinstance(one, (int, float)):
            raise Bound(f"sum takes numbers, not {type(one).__name__}")
        total += one
    return total


def _round(value: float, precision: int = 0) -> float:
    if abs(precision) > 15:
        raise Bound("round to more than 15 digits")
    return round(value, precision)


def _indent(value: object, width: int = 4, first: bool = False) -> str:
    text = _show(value)
    _grown(len(text) + (text.count("\n") + 1) * max(0, width))
    made = text.replace("\n", "\n" + " " * width)
    return " " * width + made if first else made


def made_container(value: object) -> object:
    """Stands around every literal list, tuple and dict: containers that hold each other grow exponentially."""
    _weigh(value)
    return value


def _concat(*values: object) -> str:
    """What `~` does."""
    parts = [_show(value) for value in values]
    _grown(sum(map(len, parts)))
    return "".join(parts)


def _range(*args: int) -> range:
    made = range(*args)
    if len(made) > MAX_STEPS:
        raise Bound(f"range of more than {MAX_STEPS:,}")
    return made


def _grown(size: int) -> None:
    if size > MAX_OUTPUT:
        raise Bound(f"a value grows over {MAX_OUTPUT:,} characters or elements")
    local.meter.go_through(size)


def _multiply(left: Any, right: Any) -> object:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, list, tuple)) and isinstance(other, int):
            _grown(len(one) * max(0, other))
    if isinstance(left, int) and isinstance(right, int):
        _number(left.bit_length() + right.bit_length())
    return left * right


def _add(left: Any, right: Any) -> object:
    if not isinstance(left, (int, float)):
        _grown(size_of(left) + size_of(right))
    return left + right


def _power(left: Any, right: Any) -> object:
    if isinstance(left, int) and isinstance(right, int):
        _number(left.bit_length() * max(0, right))
    return left**right


def _modulo(left: Any, right: Any) -> object:
    if isinstance(left, str):
        raise Bound("`%` on text is not allowed: write {{ … }}")
    return left % right


def _number(bits: int) -> None:
    if bits > MAX_BITS:
        raise Bound(f"a number grows over {MAX_BITS} bits")


BINARY: dict[str, Callable[[Any, Any], object]] = {"*": _multiply, "+": _add, "**": _power, "%": _modulo}
FUNCTIONS: dict[str, Callable[..., object]] = {"range": _range, "dict": dict, "namespace": Namespace}
_OWN_FILTERS: dict[str, Callable[..., object]] = {
    "replace": _replace,
    "join": _join,
    "tojson": _tojson,
    "string": _show,
    "sum": _sum,
    "round": _round,
    "indent": _indent,
}
HIDDEN_FILTERS: dict[str, Callable[..., object]] = {"_bounded": _bounded, "_concat": _concat, "_made": made_container}


FILTERS_ALLOWED: dict[str, Callable[..., Any]] = {name: _charged(name) for name in _PLAIN_FILTERS} | _OWN_FILTERS
