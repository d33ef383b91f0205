"""An answer's JSON beside the expected one, field by field.

Every value in the expected JSON that holds no others is a field, named by its way down: `address.city`, `items[].name`.
Strings are compared as `exact` does, numbers within a tolerance, lists in their order; an expected null is met where
nothing stands, too. What the answer holds beyond the expected fields does not count, but for elements of a list: a list
that is too long misses one field more, whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from penstock.engine.texts import fenced, normal, text_of

MAX_DEPTH = 200
"""As deep as results may nest; what lies deeper is no field that matches."""

Field = tuple[str, bool]
"""(name, whether it matches)."""


class _Missing:
    """Where the answer has nothing."""


_MISSING = _Missing()


def share(answer: str, expected: object, tolerance: float) -> float | None:
    """The share of the expected fields that match. None: no JSON object or list is expected."""
    found = matches(answer, expected, tolerance)
    return None if found is None else sum(right for _, right in found) / len(found)


def matches(answer: str | None, expected: object, tolerance: float) -> list[Field] | None:
    """Each expected field, never none of them. `answer` None: there is none, and nothing matches. None: no JSON object
    or list is expected."""
    wanted = expected_json(expected)
    if wanted is None:
        return None
    given = _MISSING if answer is None else _read(answer)
    return list(_compared("", given, wanted, tolerance, 0))


def expected_json(expected: object) -> dict[str, object] | list[object] | None:
    """An object or a list as it is, or written as JSON (a column of CSV, a label); None: it is neither."""
    value = _read(expected) if isinstance(expected, str) else expected
    return value if isinstance(value, dict | list) else None  # pyright: ignore[reportUnknownVariableType]


def _read(text: str) -> object:
    bare = text.strip()
    for part in (bare, fenced(bare)):
        try:
            if part is not None:
                return msgspec.json.decode(part)
        except (ValueError, RecursionError):
            continue
    return _MISSING


def _compared(name: str, given: object, wanted: object, tolerance: float, depth: int) -> Iterator[Field]:
    if depth > MAX_DEPTH:
        yield name, False
    elif isinstance(wanted, dict) and wanted:
        there: dict[object, object] = given if isinstance(given, dict) else {}
        for key, value in wanted.items():  # pyright: ignore[reportUnknownVariableType]
            below = f"{name}.{key}" if name else str(key)
            yield from _compared(below, there.get(key, _MISSING), value, tolerance, depth + 1)
    elif isinstance(wanted, list) and wanted:
        yield from _in_order(f"{name}[]", given, wanted, tolerance, depth)  # pyright: ignore[reportUnknownArgumentType]
    else:
        yield name, _same(given, wanted, tolerance)


def _in_order(name: str, given: object, wanted: list[object], tolerance: float, depth: int) -> Iterator[Field]:
    there: list[object] = given if isinstance(given, list) else []
    for n, value in enumerate(wanted):
        yield from _compared(name, there[n] if n < len(there) else _MISSING, value, tolerance, depth + 1)
    if len(there) > len(wanted):
        yield name, False


def _same(given: object, wanted: object, tolerance: float) -> bool:
    if wanted is None:
        return given is None or given is _MISSING
    if given is _MISSING or given is None or isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    if isinstance(wanted, str):
        return not isinstance(given, dict | list) and normal(text_of(given)) == normal(wanted)
    if isinstance(wanted, int | float):
        return isinstance(given, int | float) and _near(given, wanted, tolerance)
    return given == wanted  # an empty object or list


def _near(given: float, wanted: float, tolerance: float) -> bool:
    try:
        return given == wanted or abs(given - wanted) <= tolerance
    except OverflowError:  # whole numbers have no end in JSON
        return False
