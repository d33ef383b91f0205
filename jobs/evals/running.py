"""From what is asked to what was found: rows, price, run, table. The same name goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from penstock.connectors.filestore.disk import publish
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.state import open_state
from penstock.engine.budget import Budget, budget_keys
from penstock.engine.errors import SpecError, Spent
from penstock.engine.measure.evaluation import Evaluation, Row, evaluate
from penstock.engine.measure.stopping import Stop as Enough
from penstock.engine.measure.stopping import StopRule
from penstock.jobs.evals import dataset, derived
from penstock.jobs.evals.asked import Asked, check_same, deciding, folder, recalled
from penstock.jobs.evals.dataset import Made, index_of
from penstock.jobs.evals.going import Watch, enough, informs, rule_of
from penstock.jobs.evals.pricing import Priced, priced
from penstock.jobs.evals.records import Seen, read
from penstock.jobs.history import History, open_history
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people.review import choices_of
from penstock.jobs.progress import Display
from penstock.jobs.run import Session, Stop, execute
from penstock.jobs.wording import dollars
from penstock.workers.runspec import RunSpec
from penstock.workers.status import RunStatus

HEADROOM = 1.25
"""A budget where none was given: so many times the high end of the price, and room for a crash. A guess."""


class Prepared(msgspec.Struct, frozen=True):
    """`before`: the rows were written by an earlier command of this name."""

    name: str
    place: Path
    asked: Asked
    made: Made
    spec: RunSpec
    before: bool


class Found(msgspec.Struct, frozen=True):
    """`stopped`: why it ended before all rows were used; None: it did not. `informs`: why no winner is named, whatever
    the rows say."""

    prepared: Prepared
    seen: Seen
    evaluation: Evaluation | None
    stopped: Enough | None
    status: RunStatus
    informs: str | None = None


def prepare(name: str, base: RunSpec, asked: Asked, samples: Outputs | None) -> Prepared:
    """Write the rows, or find them as they were. Raises `SpecError`."""
    place = folder(base.state, name)
    known = recalled(place)
    if known is not None:
        check_same(name, known, asked)
        made = msgspec.json.decode((place / "made.json").read_bytes(), type=Made)
    else:
        made = dataset.make(place, base, asked, samples)
        publish(place / "made.json", msgspec.json.encode(made))
    spec = derived.spec_of(base, asked, place, name, requests=made.requests)
    spec = msgspec.structs.replace(spec, data=made.digest)
    publish(place / "eval.json", msgspec.json.encode(asked))  # last: what it says is all there
    return Prepared(name, place, asked, made, spec, known is not None)


def price(prepared: Prepared, budget_nano: int | None) -> tuple[Priced, RunSpec]:
    """The price, and the run inside its budget. Raises `Spent` where even the low end does not fit."""
    cost = priced(prepared.spec, prepared.asked)
    if budget_nano is not None and cost.cost_nano.low > budget_nano:
        raise Spent(
            f"the evaluation costs {dollars(round(cost.cost_nano.low))} or more, and the budget is "
            f"{dollars(budget_nano)}: take fewer rows (--rows) or candidates"
        )
    limit = budget_nano if budget_nano is not None else _by_price(prepared, cost)
    return cost, derived.within(prepared.spec, limit or None)


def _by_price(prepared: Prepared, cost: Priced) -> int:
    """Where no budget was said. What a process that died had set aside for calls under way counts as spent for ever,
    though hardly any of it was: nobody can prove which of them a provider had answered. So there is room for a window
    of rows that is lost whole while a command goes on, and for all that commands before it lost; without that, a small
    evaluation in which something is killed would stop at a part of its rows."""
    spec, rows = prepared.spec, prepared.made.rows * len(prepared.asked.variants)
    lost_at_once = cost.aside_nano * min(1.0, (spec.execution.window or derived.WINDOW) / rows)
    ((key, _),) = budget_keys((Budget(1),), spec.run_id, None, 0.0)
    ledger = LedgerClient(open_state(spec.state), spec.run_id).read(key)
    lost = ledger.forfeit_nano + ledger.leased_nano if ledger is not None else 0
    return round(cost.cost_nano.high * HEADROOM + lost_at_once) + lost


def go(prepared: Prepared, spec: RunSpec, session: Session, display: Display, *, to_the_end: bool) -> Found:
    """Run it, or go on, until it has seen enough. Raises what a run raises."""
    history, to_the_end = open_history(spec.state), to_the_end or informs(spec, prepared.asked) is not None
    found = find(prepared, history) if history.knows(spec.run_id) else None
    if found is not None and _is_over(found, to_the_end=to_the_end):
        return found
    outputs, stop = Outputs(spec, RunStatus(spec.run_id, spec.name, "starting")), Stop()
    index = index_of(prepared.place)
    with Watch(outputs, prepared.asked, index, stop.ask, to_the_end=to_the_end):
        execute(spec, session, display, stop)
    return find(prepared, history)


def _is_over(found: Found, *, to_the_end: bool) -> bool:
    """Nobody has to be asked: all rows have ended, or enough is known."""
    prepared = found.prepared
    if found.seen.ended == prepared.made.rows:
        return True
    return enough(prepared.asked, found.seen.rows, to_the_end=to_the_end) is not None


def find(prepared: Prepared, history: History) -> Found:
    """What is known by now; nothing is called."""
    run_id = prepared.spec.run_id
    if not history.knows(run_id):
        raise SpecError(f"the evaluation {prepared.name} was never run; `penstock eval` runs it")
    status = history.status_or_starting(run_id)
    asked = prepared.asked
    why = informs(prepared.spec, asked)
    seen = read(Outputs(history.spec(run_id), status), asked, index_of(prepared.place))
    whole = _evaluated(prepared, seen.rows, rule_of(asked, decides=why is None)) if seen.rows else None
    all_used = seen.ended == prepared.made.rows
    stopped = enough(asked, seen.rows, to_the_end=all_used or why is not None)
    return Found(prepared, seen, whole, stopped, status, why)


def _evaluated(prepared: Prepared, rows: Sequence[Row], rule: StopRule) -> Evaluation:
    asked, policy = prepared.asked, prepared.spec.policy
    scorer = deciding(policy.tasks[asked.task], asked.scorer)
    tolerance = scorer.tolerance if scorer.type == "fields" else None  # another's rows need no JSON to be beside
    return evaluate(asked.names, rows, rule, choices_of(policy, asked.task), tolerance)


def remembered(name: str, state: str) -> Prepared:
    """An evaluation by its name, as its run knows it. Raises `SpecError`."""
    place = folder(state, name)
    asked = recalled(place)
    if asked is None:
        there = sorted(p.name for p in place.parent.iterdir() if p.is_dir()) if place.parent.is_dir() else []
        known = f"; there are {', '.join(there[:20])}" if there else ""
        raise SpecError(f"there is no evaluation {name} in {state}{known}")
    made = msgspec.json.decode((place / "made.json").read_bytes(), type=Made)
    history = open_history(state)
    run_id = derived.run_id_of(name, place)
    if not history.knows(run_id):
        raise SpecError(f"the evaluation {name} was never run; `penstock eval` runs it")
    return Prepared(name, place, asked, made, history.spec(run_id), True)
