"""From what is asked to what was found: rows, price, run, table. The same name goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from penstock.connectors.filestore.disk import publish
from penstock.connectors.ledger import LedgerClient
from penstock.connectors.state import open_state
from penstock.engine.budget import run_key
from penstock.engine.errors import PenstockError, SpecError, Spent
from penstock.engine.leases import Ledger
from penstock.engine.measure.evaluation import Evaluation, Row, evaluate
from penstock.engine.measure.stopping import Stop as Enough
from penstock.engine.measure.stopping import StopRule
from penstock.jobs import exits
from penstock.jobs.evals import dataset, derived, home
from penstock.jobs.evals.asked import Asked, check_same, check_unchanged, deciding, folder, recalled
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
    """`before`: the rows were written by an earlier command of this name. `anew`: what was answered before, if
    anything, was answered of other rows or another job, and is thrown away when the run begins. `note`: what a person
    has to know of the rows."""

    name: str
    place: Path
    asked: Asked
    made: Made
    spec: RunSpec
    before: bool
    anew: bool = False
    note: str = ""


class Found(msgspec.Struct, frozen=True):
    """`stopped`: why it ended before all rows were used; None: it did not. `informs`: why no winner is named, whatever
    the rows say."""

    prepared: Prepared
    seen: Seen
    evaluation: Evaluation | None
    stopped: Enough | None
    status: RunStatus
    informs: str | None = None

    @property
    def all_ended(self) -> bool:
        return self.seen.ended == self.prepared.made.rows


def prepare(
    name: str, base: RunSpec, asked: Asked, samples: Outputs | None, *, fresh: bool = False, aside: Path | None = None
) -> Prepared:
    """Write the rows, or find them as they were. `fresh`: begin anew, whatever is there. `aside`: only the price is
    wanted, so rows go into this folder, and what the evaluation has stays as it is. Raises `SpecError`, also where the
    job has changed since it was begun, or it lives on another machine."""
    place = folder(base.state, name)
    if not fresh:
        home.check(base.state, name, place)
    if aside is None:
        home.begin(base.state, place)
    history, run_id = open_history(base.state), derived.run_id_of(name, place)
    known = None if fresh else recalled(place)
    if known is not None:
        check_same(name, known, asked)
    begun = history.spec(run_id) if history.knows(run_id) else None
    note = ""
    if known is not None and begun is not None:
        made = _made(place)
        spec = _spec(name, base, asked, place, made)
        _refuse_changed(name, made, begun, spec)
        note = _moved(base, asked, samples, made)
    else:  # nothing was asked yet: a price that was looked at binds to no rows
        if aside is None:
            (place / "eval.json").unlink(missing_ok=True)
        made = dataset.write(aside or place, dataset.gather(base, asked, samples), asked)
        spec = msgspec.structs.replace(_spec(name, base, asked, aside or place, made), run_id=run_id)
        replaces = None if begun is None else history.status_or_starting(run_id).started_at
        made = msgspec.structs.replace(made, parts=derived.parts_of(spec), paid_nano=_paid(spec), replaces=replaces)
        publish((aside or place) / "made.json", msgspec.json.encode(made))
    if aside is None:
        publish(place / "eval.json", msgspec.json.encode(asked))  # last: what it says is all there
    anew = fresh or (begun is not None and _is_another(made, begun, history))
    return Prepared(name, place, asked, made, spec, known is not None, anew, note)


def _made(place: Path) -> Made:
    return msgspec.json.decode((place / "made.json").read_bytes(), type=Made)


def _spec(name: str, base: RunSpec, asked: Asked, place: Path, made: Made) -> RunSpec:
    spec = derived.spec_of(base, asked, place, name, requests=made.requests)
    return msgspec.structs.replace(spec, data=made.digest)


def _is_another(made: Made, begun: RunSpec, history: History) -> bool:
    """The run that is known asked other rows, or is the one that was to begin anew with these, and has not yet. What
    has changed in the job, or in Penstock, since it began hides nothing that it found."""
    started_at = history.status_or_starting(begun.run_id).started_at
    return made.digest != begun.data or (made.replaces is not None and made.replaces == started_at)


def _refuse_changed(name: str, made: Made, begun: RunSpec, now: RunSpec) -> None:
    """Rows that were written before they knew the parts of their job go by what its run knew."""
    if made.parts:
        check_unchanged(name, made.parts, derived.parts_of(now))
    else:
        check_unchanged(name, begun.fingerprint, now.fingerprint)


def _moved(base: RunSpec, asked: Asked, samples: Outputs | None, made: Made) -> str:
    """Whether the job's rows are others now. An evaluation keeps those that it began with, since a source may grow."""
    try:
        digest = dataset.gather(base, asked, samples).digest
    except PenstockError as error:
        return f"whether the job's rows have changed since it was begun can't be told now: {error}"
    if digest == made.digest:
        return ""
    return (
        "the job's rows, or what is expected of them, have changed since it was begun, and it keeps those of then: "
        "--fresh starts over with those of now (and pays again), another --name does so beside it"
    )


def price(prepared: Prepared, budget_nano: int | None) -> tuple[Priced, RunSpec]:
    """The price, and the run inside its budget. Raises `Spent` where even the low end does not fit."""
    cost = priced(prepared.spec, prepared.asked)
    if budget_nano is not None and cost.cost_nano.low > budget_nano:
        raise Spent(
            f"the evaluation costs {dollars(round(cost.cost_nano.low))} or more, and the budget is "
            f"{dollars(budget_nano)}: take fewer rows (--rows) or candidates"
        )
    limit = budget_nano if budget_nano is not None else _by_price(prepared, cost) + prepared.made.paid_nano
    return cost, derived.within(prepared.spec, limit if limit or cost.cost_nano.high else None)


def _by_price(prepared: Prepared, cost: Priced) -> int:
    """Where no budget was said. What a process that died had set aside for calls under way counts as spent for ever,
    though hardly any of it was: nobody can prove which of them a provider had answered. So there is room for a window
    of rows that is lost whole while a command goes on, and for all that commands before it lost; without that, a small
    evaluation in which something is killed would stop at a part of its rows."""
    spec, rows = prepared.spec, prepared.made.rows * len(prepared.asked.variants)
    lost_at_once = cost.aside_nano * min(1.0, (spec.execution.window or derived.WINDOW) / rows)
    ledger = _ledger(spec)
    lost = ledger.forfeit_nano + ledger.leased_nano if ledger is not None else 0
    return round(cost.cost_nano.high * HEADROOM + lost_at_once) + lost


def _ledger(spec: RunSpec) -> Ledger | None:
    return LedgerClient(open_state(spec.state), spec.run_id).read(run_key(spec.run_id))


def _paid(spec: RunSpec) -> int:
    ledger = _ledger(spec)
    return ledger.settled_nano if ledger is not None else 0


def go(prepared: Prepared, spec: RunSpec, session: Session, display: Display, *, to_the_end: bool) -> Found:
    """Run it, or go on, until it has seen enough. Raises what a run raises."""
    history, to_the_end = open_history(spec.state), to_the_end or informs(spec, prepared.asked) is not None
    found = find(prepared, history) if history.knows(spec.run_id) and not prepared.anew else None
    if found is not None and _is_over(found, to_the_end=to_the_end):
        return found
    home.claim(spec.state, prepared.name, prepared.place, anew=prepared.anew)
    options = msgspec.structs.replace(session.options, fresh=prepared.anew)
    now = msgspec.structs.replace(session, options=options)
    by_itself = _stops_by_itself(prepared, spec, now, display, history, to_the_end=to_the_end)
    prepared = msgspec.structs.replace(prepared, anew=False)
    found = find(prepared, history)
    if not by_itself or _is_over(found, to_the_end=to_the_end) or found.status.state != "interrupted":
        return found
    display.say("what was under way when enough seemed to be known makes it doubtful again: it goes on")
    return go(prepared, spec, session, display, to_the_end=to_the_end)


def _stops_by_itself(
    prepared: Prepared, spec: RunSpec, session: Session, display: Display, history: History, *, to_the_end: bool
) -> bool:
    """Run it until it ends, or seems to have seen enough. Whether that alone stopped it: nobody else asked to."""
    outputs, stop = Outputs(spec, RunStatus(spec.run_id, spec.name, "starting")), Stop()
    index, ours = index_of(prepared.place), taken(prepared, history)
    with Watch(outputs, prepared.asked, index, stop.ask, ours, to_the_end=to_the_end) as watch:
        execute(spec, session, display, stop)
    return watch.stop is not None and stop.level == 1


def taken(prepared: Prepared, history: History) -> Callable[[], bool]:
    """Whether this command has the run: until then, what is read of one that begins anew is what it throws away."""
    run_id = prepared.spec.run_id
    if not prepared.anew or not history.knows(run_id):
        return lambda: True
    before = history.status_or_starting(run_id).started_at
    return lambda: history.status_or_starting(run_id).started_at != before


def _is_over(found: Found, *, to_the_end: bool) -> bool:
    """Nobody has to be asked: all rows have ended, or enough is known, and no more was asked for (`to_the_end`)."""
    return found.all_ended or (found.stopped is not None and not to_the_end)


def exit_code(found: Found, *, to_the_end: bool) -> int:
    """An evaluation that has seen enough did what it is for, however its run ended; else it is as of any run. One of
    which no row counts has found nothing."""
    if found.all_ended and not found.seen.rows:
        return exits.DEAD_LETTERS
    return exits.DONE if _is_over(found, to_the_end=to_the_end) else exits.of_status(found.status, None)


def find(prepared: Prepared, history: History) -> Found:
    """What is known by now; nothing is called. Raises `SpecError` where nothing is: it was never run, or is to begin
    anew."""
    run_id = prepared.spec.run_id
    if not history.knows(run_id) or _is_another(prepared.made, spec := history.spec(run_id), history):
        raise SpecError(f"the evaluation {prepared.name} was not run yet as it is now; `penstock eval` runs it")
    status = history.status_or_starting(run_id)
    asked = prepared.asked
    why = informs(prepared.spec, asked)
    seen = read(Outputs(spec, status), asked, index_of(prepared.place))
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
    home.check(state, name, place)
    asked = recalled(place)
    if asked is None:
        here = {p.name for p in place.parent.iterdir() if p.is_dir()} if place.parent.is_dir() else set[str]()
        there = sorted(here | home.names(state))
        known = f"; there are {', '.join(there[:20])}" if there else ""
        raise SpecError(f"there is no evaluation {name} in {state}{known}")
    history = open_history(state)
    run_id = derived.run_id_of(name, place)
    if not history.knows(run_id):
        raise SpecError(f"the evaluation {name} was never run; `penstock eval` runs it")
    made, spec = _made(place), history.spec(run_id)
    return Prepared(name, place, asked, made, spec, True, _is_another(made, spec, history))
