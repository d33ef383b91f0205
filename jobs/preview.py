"""What a trial shows: each row's prompt as it was sent, and the answer that came back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.settings import KafkaSource
from penstock.engine.items import Item
from penstock.engine.results import DeadLetter
from penstock.jobs.look import told
from penstock.jobs.look.explain import cut
from penstock.jobs.wording import dollars, inert

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.jobs.look.told import SourceTold
    from penstock.jobs.result import JobResult
    from penstock.workers.runspec import RunSpec

ROWS = 20
"""A person reads so many; a longer trial shows the first ones and says so."""


class Shown(msgspec.Struct, frozen=True):
    """One row. `answer` None: it ended in dead letters; `note` then says why."""

    label: str
    prompt: list[tuple[str, str]]
    answer: str | None
    note: str


def show(result: JobResult, console: Console) -> None:
    """Print the first rows of a trial, in input order."""
    from rich.table import Table
    from rich.text import Text

    for row in first_rows(result, ROWS):
        console.print(Text(f"── {inert(row.label)}", style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for role, text in row.prompt:
            table.add_row(role, Text(inert(cut(text))))
        answer = Text(inert(row.answer), style="green") if row.answer is not None else Text("none", style="yellow")
        table.add_row("answer", answer.append(f"  ({inert(row.note)})", style="dim"))
        console.print(table)
    limit = result.spec.limit or 0
    if limit > ROWS:
        console.print(
            f"the first {ROWS} of {limit:,}; all are in {', '.join(result.status.outputs.get('results', []))}"
        )


def first_rows(result: JobResult, count: int) -> list[Shown]:
    done = [told.result(line) for line in islice(result.lines("results"), count)]
    dead = list(islice(result.dead_letters(), count - len(done)))
    places = [one.penstock.source for one in done] + [letter.source for letter in dead]
    read = {item.item_id: item for item in items(result.spec, count, [place for place in places if place])}
    return [_answered(read, one) for one in done] + [_died(read, letter) for letter in dead]


def items(spec: RunSpec, count: int, places: Sequence[SourceTold] = ()) -> list[Item | DeadLetter]:
    """The rows once more from the source: records don't hold prompts. Of a topic those at `places`, where known:
    its partitions come in another order each time."""
    from penstock.connectors.reading.intake import Intake, input_shape
    from penstock.connectors.registry import open_source
    from penstock.jobs.forecasting.sampling import read_at, read_sample

    def maker(form: str) -> Callable[[Raw], Item | DeadLetter]:
        names, shape = spec.catalog.models, input_shape(form)
        intake = Intake(spec.run_id, shape, spec.row, spec.policy, names, spec.generation, spec.vars)
        return lambda raw: intake.item(raw, 0.0)

    if isinstance(spec.source, KafkaSource) and places:
        wanted = dict[str, set[int]]()
        for place in places:
            wanted.setdefault(place.split.rpartition("#")[0], set()).add(place.position)
        return asyncio.run(read_at(open_source(spec.source), maker, wanted))
    return list(asyncio.run(read_sample(open_source(spec.source), maker, count, count)).found)


def _answered(items: dict[str, Item | DeadLetter], ending: told.ResultTold) -> Shown:
    block = ending.penstock
    return Shown(
        label=_label(items.get(block.item_id)) or ending.custom_id or block.item_id[:12],
        prompt=messages(items.get(block.item_id)),
        answer=cut(ending.answer),
        note=f"{block.model}, {dollars(told.nano(block.cost_usd))}",
    )


def _died(items: dict[str, Item | DeadLetter], letter: told.LetterTold) -> Shown:
    prompt = messages(items.get(letter.item_id))
    return Shown(letter.custom_id or letter.item_id[:12], prompt, None, f"{letter.reason}: {letter.message}")


def _label(item: Item | DeadLetter | None) -> str | None:
    return item.custom_id if item is not None else None


class _Part(msgspec.Struct, frozen=True):
    type: str = ""
    text: str = ""


class _Message(msgspec.Struct, frozen=True):
    role: str = ""
    content: str | list[_Part] | None = None


class _Body(msgspec.Struct, frozen=True):
    messages: list[_Message] = []


def messages(item: Item | DeadLetter | None) -> list[tuple[str, str]]:
    """(role, text) of each message; a picture is told as `[image_url]`."""
    return read_messages(item.request.body_json) if isinstance(item, Item) else []


def read_messages(body_json: bytes) -> list[tuple[str, str]]:
    """The same of a request's body."""
    body = msgspec.json.decode(body_json, type=_Body)
    return [(message.role, _text(message.content)) for message in body.messages]


def _text(content: str | list[_Part] | None) -> str:
    if isinstance(content, list):
        return "\n".join(part.text or f"[{part.type}]" for part in content)
    return content or ""
