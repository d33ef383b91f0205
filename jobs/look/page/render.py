"""The page: sections through a template that escapes all they say, into one file with its style inside."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from penstock.connectors.base import SinkName
from penstock.engine.errors import SpecError
from penstock.jobs.look.page import about, beside, compared, marks, money, routing, speed, steered, trials, troubles
from penstock.jobs.look.page.beside import Beside
from penstock.jobs.look.page.gather import Facts, gather
from penstock.jobs.look.page.parts import Section, shown, when
from penstock.jobs.look.reading import Outputs

SINKS: tuple[SinkName, ...] = ("results", "dead_letters", "costs", "quality", "review")
FIRST = "<!doctype html>"
"""How every page begins: a file that begins otherwise was not made here, and is not written over."""


def page(outputs: Outputs, now: float) -> str:
    """The whole page. Raises `Corrupt` where a record is not one of ours."""
    from jinja2 import Environment, StrictUndefined

    files = resources.files("penstock.jobs.look.page")
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    facts, status = gather(outputs), outputs.status
    return env.from_string((files / "page.html.j2").read_text("utf-8")).render(
        style=Markup((files / "page.css").read_text("utf-8")),
        name=shown(status.name),
        state=status.state.replace("_", " "),
        made=when(now),
        headlines=about.headlines(facts, status),
        sections=_sections(facts, outputs, beside.gather(outputs)),
    )


def _sections(facts: Facts, outputs: Outputs, known: Beside) -> list[Section]:
    status = outputs.status
    places = [(sink, outputs.where(sink)) for sink in SINKS if sink in outputs.spec.sinks]
    return [
        about.section(facts, status, places),
        money.section(facts.money),
        marks.section(facts.marks, compared.measured(known.measured, outputs.spec.policy)),
        *_there(compared.evaluations(known)),
        routing.section(facts.routing, [each.at for each in known.decisions]),
        *_there(steered.section(known, status.cells)),
        *trials.sections(facts.trials, outputs, known.rollouts),
        speed.section(facts.speed),
        troubles.calls_section(facts.troubles),
        troubles.refused_section(facts.troubles, status),
        troubles.letters_section(facts.troubles),
        troubles.twice_section(facts.troubles, status),
    ]


def _there(section: Section | None) -> list[Section]:
    return [] if section is None else [section]


def write(path: Path, text: str) -> None:
    """All of it or nothing. Raises `SpecError` where there is a file that is no page, or the place can't be written."""
    try:
        if path.exists() and not _is_page(path):
            raise SpecError(f"{path} is there and is no report: name another file, or remove it")
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, "utf-8", errors="replace")
        os.replace(partial, path)
    except OSError as error:
        raise SpecError(f"{path} can't be written: {error.strerror or error}") from error


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(FIRST)).lower() == FIRST.encode()
