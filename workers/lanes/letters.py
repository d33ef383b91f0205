"""Dead letters that must fit: what their sink does not take is left out, and the letter says so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from penstock.engine.results import DeadLetter

Headers = tuple[tuple[str, bytes], ...]
NAMED = 10
NAME_CHARS = 80
"""So much is told of headers that are left out: a name may be as long as a value."""


def fitted(letter: DeadLetter, fits: Callable[[DeadLetter], bool]) -> DeadLetter:
    """The letter with as much of its original as fits. Where it fits without any original neither, the largest headers
    go first (they are hardly those that say whose an item is), then the key; what is left may still not fit."""
    if fits(letter):
        return letter
    bare = _bare(shortened(letter, 0), fits)
    length = len(letter.original)
    while length:
        longer = msgspec.structs.replace(bare, original=letter.original[:length])
        if fits(longer):
            return longer
        length //= 2
    return bare


def shortened(letter: DeadLetter, length: int) -> DeadLetter:
    """The letter with the head of its original only; length and hash tell of the whole."""
    whole = letter.original_length or (letter.item.original_length if letter.item else 0)
    digest = letter.original_hash or (letter.item.original_hash if letter.item else "")
    return msgspec.structs.replace(
        letter,
        original=letter.original[:length],
        original_length=whole or len(letter.original),
        original_hash=digest or hashlib.blake2b(letter.original, digest_size=16).hexdigest(),
    )


def _bare(letter: DeadLetter, fits: Callable[[DeadLetter], bool]) -> DeadLetter:
    came, bare = letter.item or letter, letter
    headers, gone = came.headers, list[str]()
    while headers and not fits(bare):
        headers, names = _without_largest(headers)
        gone += names
        bare = _holding(letter, came.key, headers, _told(gone))
    if came.key is None or fits(bare):
        return bare
    return _holding(letter, None, headers, ", ".join(["the key", _told(gone)] if gone else ["the key"]))


def _without_largest(headers: Headers) -> tuple[Headers, list[str]]:
    """Those that stay, and the names of the largest ones, which are half of all bytes at least."""
    sizes = [len(name) + len(value) for name, value in headers]
    left, gone = sum(sizes) / 2, set[int]()
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        gone.add(at)
        left -= sizes[at]
        if left <= 0:
            break
    return tuple(one for at, one in enumerate(headers) if at not in gone), [headers[at][0] for at in sorted(gone)]


def _told(names: list[str]) -> str:
    shown = ", ".join(name[:NAME_CHARS] for name in names[:NAMED])
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{'header' if len(names) == 1 else 'headers'} {shown}{more}"


def _holding(letter: DeadLetter, key: bytes | None, headers: Headers, cut: str) -> DeadLetter:
    item = msgspec.structs.replace(letter.item, key=key, headers=headers) if letter.item is not None else None
    return msgspec.structs.replace(letter, item=item, key=key, headers=headers, cut=cut)
