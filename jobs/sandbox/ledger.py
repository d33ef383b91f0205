"""What the pretend provider served and charged, and what was paid for twice. Memory: one small entry an item."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator

import msgspec

_encode = msgspec.json.Encoder().encode

MANY_ATTEMPTS = 31
"""Attempts told apart one by one; later ones count as this one."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the journal. `key`: the item's id, or a hash of the body. `kind`: ok, invalid_json or refuse."""

    request_id: str
    key: str
    at: float
    input: int
    output: int
    model: str
    generation: int = 0
    attempt: int = 0
    kind: str = "ok"


class Tokens(msgspec.Struct):
    calls: int = 0
    input: int = 0
    output: int = 0
    known: int = 0
    """Answers to rows whose right answer the sandbox knows, by models with planted quality."""
    right: int = 0


class Who(msgspec.Struct, frozen=True, gc=False):
    """Whose request it is. `mark`: what payments are counted by; the id itself where it is one of ours."""

    key: str
    mark: bytes
    generation: int = 0
    attempt: int = 0


def who(item: str | None, attempt: str | None, body: bytes) -> Who:
    """By the header `x-penstock-item: <item_id>:<generation>`, else by the body."""
    if not item:
        digest = hashlib.blake2b(body, digest_size=16)
        return Who(f"body-{digest.hexdigest()}", b"b" + digest.digest())
    key, _, generation = item.partition(":")
    n = small(generation)
    mark = b"i" + (bytes.fromhex(key) if _is_id(key) else hashlib.blake2b(key.encode(), digest_size=16).digest())
    return Who(key, mark + (n.to_bytes(4, "big") if n else b""), n, small(attempt))


def small(text: str | None) -> int:
    """A number of at most nine digits; 0 for all else."""
    return int(text) if text and len(text) <= 9 and text.isascii() and text.isdigit() else 0


def _is_id(key: str) -> bool:
    if len(key) != 32:
        return False
    try:
        return len(bytes.fromhex(key)) == 16
    except ValueError:
        return False


class Ledger:
    """Counts. A payment is a request that was answered with 200 and an answer one can use; the same identity again is
    a second payment. What was charged for nothing (half a body, a refusal) is counted apart."""

    def __init__(self, journal: str | None = None) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if journal else None
        self.reset()

    def reset(self) -> None:
        """Forget all counts; the journal stays."""
        self.served = 0
        self.second_payments = 0
        self.same_attempt = 0
        """Second payments of the very same attempt: what only a crash or a hidden retry explains."""
        self.failed: Counter[str] = Counter()
        self.models: dict[str, Tokens] = {}
        self._paid: dict[bytes, int] = {}
        """mark → payments × 2³² + a bit for each attempt: one integer an item."""

    def charge(self, who: Who, request_id: str, model: str, tokens: tuple[int, int], kind: str = "ok") -> None:
        """Call it before the answer leaves, so that a killed sandbox has charged for all that anybody got."""
        if self._journal is not None:
            entry = Entry(
                request_id, who.key, time.time(), tokens[0], tokens[1], model, who.generation, who.attempt, kind
            )
            os.write(self._journal, _encode(entry) + b"\n")
        sums = self.models.setdefault(model, Tokens())
        sums.calls += 1
        sums.input += tokens[0]
        sums.output += tokens[1]
        if kind == "ok":
            self._count(who)
        else:
            self.failed[kind] += 1

    def calls(self, model: str) -> int:
        """Answers of a model that were charged, since the last reset."""
        sums = self.models.get(model)
        return 0 if sums is None else sums.calls

    def knew(self, model: str, right: bool) -> None:
        sums = self.models.setdefault(model, Tokens())
        sums.known += 1
        sums.right += right

    def _count(self, who: Who) -> None:
        self.served += 1
        bit = 1 << min(who.attempt, MANY_ATTEMPTS)
        known = self._paid.get(who.mark, 0)
        if known:
            self.second_payments += 1
            self.same_attempt += bool(known & bit)
        self._paid[who.mark] = (known + (1 << 32)) | bit

    def items(self, more_than: int = 0) -> Iterator[bytes]:
        """JSON lines: item (id, or `body-…`), generation, and how often it was paid for."""
        for mark, known in list(self._paid.items()):
            paid = known >> 32
            if paid > more_than:
                yield _encode(_item(mark, paid)) + b"\n"

    def stats(self) -> dict[str, object]:
        return {
            "served": self.served,
            "items": len(self._paid),
            "second_payments": self.second_payments,
            "second_payments_same_attempt": self.same_attempt,
            "failed": dict(self.failed),
            "models": {name: _sums(name, sums) for name, sums in self.models.items()},
        }

    def close(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None


def _item(mark: bytes, paid: int) -> dict[str, object]:
    name = mark[1:17].hex()
    generation = int.from_bytes(mark[17:], "big")
    return {"item": name if mark[:1] == b"i" else f"body-{name}", "generation": generation, "paid": paid}


def _sums(model: str, sums: Tokens) -> dict[str, object]:
    """With the cost at the pretend price, in dollars (input and output; nothing is cached here)."""
    from penstock.jobs.prices import sandbox_price

    price = sandbox_price(model)
    nano = (sums.input * price.input + sums.output * price.output) // 1_000_000
    told: dict[str, object] = {"calls": sums.calls, "input": sums.input, "output": sums.output}
    if sums.known:
        told |= {"known": sums.known, "right": sums.right}
    return {**told, "pretend_usd": nano / 1e9}


def read_journal(path: str | os.PathLike[str]) -> list[Entry]:
    """All whole lines of a journal; a last one that a kill cut short is left out."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    return [msgspec.json.decode(line, type=Entry) for line in lines[:-1]]
