"""The way back from a rollout, and what its version answered sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from penstock.engine.errors import PenstockError
from penstock.jobs import exits
from penstock.jobs.commands import sending, shared
from penstock.jobs.commands.rollout import say, speak, why_option

if TYPE_CHECKING:
    from penstock.jobs.history import History
    from penstock.jobs.requeue import Touched


@click.command()
@click.argument("model")
@why_option
@click.option("--to", "version", metavar="VERSION", help="Straight to this version, whatever the last rollout was.")
@click.option("--requeue", is_flag=True, help="Send again what the new version answered; priced, and asked, first.")
@click.option("--yes", is_flag=True, help="With --requeue: don't ask.")
@click.option("--address", envvar="RAY_ADDRESS", help="A Ray cluster. [default: a Ray of its own; env RAY_ADDRESS]")
@shared.state_option
def rollback(
    model: str, why: str, version: str | None, requeue: bool, yes: bool, address: str | None, state: str | None
) -> int:
    """Take MODEL's last rollout back: every job sends its items to the version before, running ones within 5 s.

    What is at a worker then ends as it is; nothing that waits is sent to the new version any more. Also takes back a
    version that was promoted already. With --to, VERSION is live for all from now on: also one that was live before a
    later rollout, which passed its shadow stage or was taken back itself.

    --requeue sends again, as a new generation, the items that the version taken back answered since a rollout brought
    it, beside their outputs, like a replay of dead letters: of runs that have ended, and of runs without an end what
    is committed so far, while they go or not; records that their topics hold no more are counted as lost. Its price is
    that of the version that answers now, for as many tokens; where that is not known, what was paid the first time.
    Left out, named with the reason: runs with an end that still go or have to be finished first, runs with such a
    replay, and those whose input moved; they hold up no other. After the rollback it may be given once more, for what
    was answered or ended since.
    """
    from penstock.jobs import rollouts

    url = shared.state_url(state)
    there = rollouts.steering(url).rollouts.get(model)
    is_back = there is not None and there.state == "rolled_back" and version in (None, there.baseline)
    code: int = exits.DONE
    if not (requeue and is_back):  # else only what ended since is sent again
        code = (
            speak(model, "rollback", why, state)
            if version is None
            else say(rollouts.put_back(url, model, version, why), url)
        )
    return _requeue(url, model, yes, address) if requeue else code


def _requeue(url: str, model: str, yes: bool, address: str | None) -> int:
    from penstock.jobs import requeue, rollouts
    from penstock.jobs.history import open_history
    from penstock.jobs.wording import counted, dollars

    history, at = open_history(url), rollouts.steering(url).rollouts[model]
    found, left = requeue.touched(history, at)
    for run in left:
        shared.echo(f"note: {run.run_id} is left out: {run.why}", err=True)
    code = max((exits.of_error(run.error) for run in left if run.error is not None), default=exits.DONE)
    bad = f"{at.model}@{at.candidate}"
    for one in found:
        goes_on = "; it goes on: what is under way there comes with another --requeue" if one.goes_on else ""
        shared.echo(f"{one.run_id}: {counted(len(one.generations), 'item')} answered by {bad}{goes_on}")
    if not found:
        shared.echo(f"no run that can be sent again has an item of {bad}: nothing to send again")
        return code
    items, cost = sum(len(one.generations) for one in found), sum(one.cost_nano for one in found)
    why = _reckoned(sum(one.priced for one in found), items, f"{at.model}@{at.baseline}")
    shared.echo(f"sending {counted(items, 'item')} again costs about {dollars(cost)}: {why}")
    if not sending.confirmed(yes):
        return code
    return max(code, _send_all(history, found, address))


def _reckoned(priced: int, items: int, now: str) -> str:
    """How it was told what they cost. `priced`: at the price of the version that answers now."""
    if not priced:
        return "what their answers cost the first time"
    at = f"the tokens of their answers at the price of {now}"
    rest = items - priced
    return f"{at}; of {rest:,}, where that is not known, what they cost the first time" if rest else at


def _send_all(history: History, found: list[Touched], address: str | None) -> int:
    """Run by run, whatever becomes of the others; a person's interrupt ends all. Returns the worst exit code."""
    worst: int = exits.DONE
    for one in found:
        try:
            code = _send(history, one, address)
        except PenstockError as error:
            shared.echo(f"error: {one.run_id} is not sent again: {error}", err=True)
            code = exits.of_error(error)
        worst = max(worst, code)
        if code == exits.INTERRUPTED:
            break
    return worst


def _send(history: History, one: Touched, address: str | None) -> int:
    from penstock.jobs import requeue
    from penstock.jobs.wording import counted

    made = requeue.prepare(history, one)
    lost = f"; {made.lost:,} not in the source any more, or over 1 MB" if made.lost else ""
    shared.echo(f"{made.spec.run_id}: sending {counted(made.sent, 'item')} again{lost}")
    facts = {"sent": made.sent, "requeue": True, "lost": made.lost}
    return sending.send(history, made.spec, one.run_id, facts, address)
