"""Answers held against what was asked for: at once, or apart where that may take long, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest

from penstock.engine.items import Answer, Outcome, OutputSpec
from penstock.workers.checking import verifying
from penstock.workers.checking.answers import may_take_long
from penstock.workers.checking.apart import Apart, TooLong
from penstock.workers.checking.verifying import Verifier
from penstock.workers.engines.base import EngineDead, Right, Ticket
from tests.workers.test_puller import World, call, outcome, until


def asked(schema: object) -> Ticket:
    return Ticket(call("a"), Right("r", 0, (1, 1), 1e12), OutputSpec(json_schema=msgspec.json.encode(schema)))


def said(text: str) -> Outcome:
    return msgspec.structs.replace(outcome(call("a")), answer=Answer(text, "stop", b"{}"))


async def verified(verify: Verifier, schema: object, text: str) -> Outcome:
    found = verify(asked(schema), said(text))
    return found if isinstance(found, Outcome) else await found


@pytest.mark.parametrize(
    ("schema", "long"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, False),
        ({"properties": {"a": {"anyOf": [{"type": "null"}, {"pattern": "a"}]}}}, True),
        ({"patternProperties": {"^a": {}}}, True),
        ({"items": {"uniqueItems": True}}, True),
        (True, False),
    ],
)
async def test_only_schemas_that_search_are_held_apart(schema: object, long: bool) -> None:
    """All others are checked at once."""
    assert may_take_long(msgspec.json.encode(schema)) is long
    found = Verifier()(asked(schema), said("{}"))
    assert isinstance(found, Outcome) is not long
    assert isinstance(found, Outcome) or (await found).failure is None


async def test_a_pattern_that_goes_back_for_ever_makes_an_answer_invalid_and_holds_up_nobody() -> None:
    """The worker's loop goes on meanwhile; the answers behind it are checked."""
    verify = Verifier(Apart(60.0, 0.5))
    schema = {"type": "string", "pattern": "^(a+)+$"}
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(beat())
    texts = ['"aa"', '"' + "a" * 60 + '!"', '```json\n"aaa"\n```', '"b"']
    good, hung, fenced, bad = await asyncio.gather(*(verified(verify, schema, text) for text in texts))
    beating.cancel()
    assert beats >= 10, "half a second of them"
    assert (good.failure, fenced.failure) == (None, None)
    assert fenced.answer is not None
    assert fenced.answer.text == '"aaa"'
    assert hung.failure is not None
    assert hung.failure.kind == bad.failure.kind == "invalid_output"  # pyright: ignore[reportOptionalMemberAccess]
    assert "takes over" in hung.failure.message
    assert "does not match" in bad.failure.message  # pyright: ignore[reportOptionalMemberAccess]


async def test_a_worker_that_can_start_no_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not well: a good answer must not count as a bad one, nor wait for ever."""

    def refused(*_: object, **__: object) -> Any:
        raise OSError("no memory")

    monkeypatch.setattr("subprocess.Popen", refused)
    monkeypatch.setattr(verifying, "START_S", 0.0)
    monkeypatch.setattr(verifying, "PAUSE_S", 0.01)
    with pytest.raises(OSError, match="no process"):
        await verified(Verifier(), {"pattern": "a"}, '"a"')


class Scripted:
    """Stands where the process would. `late`: looks until it is up; `asked`: answers that it was asked about."""

    def __init__(self, late: int = 0) -> None:
        self.late = late
        self.asked: list[str] = []

    def up(self, wait_s: float) -> bool:
        self.late -= 1
        return self.late < 0

    def ask(self, question: str, schema: str, text: str) -> object:
        self.asked.append(text)
        if text.startswith("long"):
            raise TooLong
        return [True, text, ""]


async def test_answers_wait_for_a_process_that_starts_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine: the worker lives, and its calls are not paid for again."""
    monkeypatch.setattr(verifying, "PAUSE_S", 0.001)
    found = await verified(Verifier(Scripted(late=10)), {"pattern": "a"}, "a")  # pyright: ignore[reportArgumentType]
    assert found.failure is None


async def test_a_schema_whose_answers_often_take_too_long_is_not_asked_about_any_more() -> None:
    """Each would hold up those behind it by a second and a new process. Other schemas' answers are checked still, and
    so are those of one that is only seldom slow."""
    apart = Scripted()
    verify = Verifier(apart)  # pyright: ignore[reportArgumentType]
    for n in range(6):
        found = await verified(verify, {"pattern": "a"}, f"long {n}")
        assert found.failure is not None
        assert "takes over" in found.failure.message
    assert len(apart.asked) == 3
    assert (await verified(verify, {"pattern": "b"}, "b")).failure is None
    for text in ["good"] * 100 + ["long"] * 4 + ["last"]:
        await verified(verify, {"pattern": "c"}, text)
    assert apart.asked[-1] == "last"


async def test_an_answer_that_is_checked_for_long_lands_by_itself() -> None:
    """Those after it are delivered before it; one whose worker dies meanwhile is told once."""
    world = World([call("a"), call("b"), call("c")])
    gate = asyncio.Event()

    async def later(checked: Outcome) -> Outcome:
        await gate.wait()
        return checked

    def check(ticket: Ticket, checked: Outcome) -> Outcome | Awaitable[Outcome]:
        return later(checked) if ticket.call.item_id != "b" else checked

    world.puller._check = check  # pyright: ignore[reportPrivateUsage]
    await until(lambda: len(world.engine.tickets) == 3)
    world.engine.land("a", "b")
    await until(lambda: world.lane.got)
    assert world.lane.got == [((1, 1), ["b"])]
    gate.set()
    await until(lambda: len(world.lane.got) == 2)
    gate.clear()
    world.engine.land("c")
    await until(lambda: not world.engine.tickets)
    await asyncio.sleep(0)
    world.puller.died(EngineDead("out of memory"))
    await until(lambda: len(world.lane.got) == 3)
    gate.set()
    await asyncio.sleep(0.01)
    assert [names for _, names in world.lane.got] == [["b"], ["a"], ["c"]]
    await world.puller.close()
