"""What a run leaves in the audit log: who began it with what, where items may go, what was refused, how it ended."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.base import Holder
from penstock.connectors.settings import MemorySink, MemorySource, Row
from penstock.engine.audit import Entry
from penstock.engine.budget import Budget
from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.errors import Corrupt
from penstock.engine.flow.tally import UNSAID, ModelTally, Tally, count_refused
from penstock.engine.plan import Plan
from penstock.engine.policy import Policy, Prompt, Task
from penstock.workers.books.trail import DAY_S, MOST_WAITING, WRITE_EVERY_S, Trail
from penstock.workers.driving.planner import Planned
from penstock.workers.runspec import RunOptions, RunSpec
from penstock.workers.status import RunStatus

SECRET = "env:SECRET_KEY"
CATALOG = Catalog(
    accounts={"us": Account("us", "openai", "http://127.0.0.1:1", SECRET, regions=("us",))},
    models={
        "cloud": Model("cloud", (Version("v1", "gpt-x", "r7"),), "v1", account="us", price=Price(1, 2)),
        "own": Model("own", (Version("v2", "qwen"),), "v2", worker="vllm", hour_usd=1.0),
    },
    tiers={1: ("cloud",), 3: ("own",)},
    walls={"eu-only": Wall("eu-only", regions=("eu",)), "house": Wall("house", self_hosted=True)},
)
PROMPT = "Tell me whether {{ text }} is a secret"
POLICY = Policy({"t": Task("t", tier=3, min_quality=0.8, prompt=Prompt(PROMPT, version="p1"))}, version="pol1")
PLAN = Plan("r-1", "r", {}, 2, (), {}, 0.0)


def refused(wall: str, times: int) -> Tally:
    tally = Tally()
    for _ in range(times):
        count_refused(tally, wall, CATALOG.models)
    return tally


class Desk:
    """A trail, its notes, and the log that it writes to."""

    def __init__(self, folder: Path, run: str = "r-1", catalog: Catalog = CATALOG) -> None:
        self.folder = folder
        spec = RunSpec(
            run, "r", {}, MemorySource("x"), None, Row(), catalog, POLICY, {"results": MemorySink("x")},
            budgets=(Budget(5_000_000_000, "day"),), state=str(folder), fingerprint={"shape": "ab"},
        )  # fmt: skip
        command = f"penstock run rows.csv --prompt '{PROMPT}'"
        self.notes: list[str] = []
        self.trail = Trail(spec, RunOptions(command=command), self.notes.append)
        self.log = open_audit(str(folder))

    async def began(self, *changed: str) -> None:
        await self.trail.began(1, Planned(PLAN, bool(changed), (), changed), 0.0)

    def entries(self, kind: str = "") -> list[Entry]:
        assert self.log.verify().broken is None
        return [entry for entry in self.log.entries() if kind in ("", entry.kind)]

    def facts(self, kind: str) -> list[dict[str, object]]:
        return [msgspec.json.decode(entry.facts) for entry in self.entries(kind)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_run_tells_who_began_it_and_where_its_items_may_go(desk: Desk) -> None:
    """Tiers, tasks, walls and why they forbid, budgets: by the version of the policy that records name."""
    await desk.began()
    assert [entry.kind for entry in desk.entries()] == ["run_started", "policy"]
    assert desk.entries()[0].actor.endswith("/penstock run")
    started, policy = desk.facts("run_started")[0], desk.facts("policy")[0]
    assert started["policy_version"] == policy["policy_version"] == "pol1"
    assert started["budgets"] == [{"limit_nano": 5_000_000_000, "per": "day"}]
    assert policy["tiers"] == {"1": ["cloud"], "3": ["own"]}
    assert policy["walls"] == {
        "eu-only": {"permits": [], "forbids": {"cloud": "region us not in eu", "own": "unknown region"}},
        "house": {"permits": ["own"], "forbids": {"cloud": "not self-hosted"}},
    }


async def test_no_prompt_and_no_key_is_in_the_log(desk: Desk) -> None:
    """Nor in an entry's actor, though the prompt stood in the command line."""
    await desk.began("task t: prompt")
    await desk.trail.ended("failed", "the provider said: secret prompt", Tally(), 1.0)
    text = "".join(path.read_text() for path in (desk.folder / "audit").iterdir()).lower()
    assert "secret" not in text
    assert "tell me" not in text


async def test_a_change_of_the_job_that_was_accepted_is_named(desk: Desk) -> None:
    await desk.began("task t: prompt", "tiers")
    assert desk.facts("job_changed") == [{"changed": ["task t: prompt", "tiers"]}]


async def test_a_take_over_and_a_deletion_are_written_before_they_happen(desk: Desk) -> None:
    """Who lost the run is named; where nobody held it, nobody is."""
    await desk.trail.deletes(0.0)
    await desk.trail.takes_over(None, 0.0)
    await desk.trail.takes_over(Holder("h", 7, "bob", 5.5, "penstock run x"), 0.0)
    assert [entry.kind for entry in desk.entries()] == ["deletion", "take_over"]
    assert desk.facts("take_over") == [{"from": "bob@h/penstock run", "pid": 7, "held_since": 5}]


async def test_refusals_by_walls_are_summed_every_few_minutes_and_at_the_end(desk: Desk) -> None:
    """Where they are new; each entry has the sums of the run so far, so one that got lost leaves no gap."""
    await desk.began()
    status = RunStatus("r-1", "r", "running")
    await desk.trail.look(status, WRITE_EVERY_S)
    status.tally = refused("eu-only", 4)
    status.tally.dead_letters = {"wall": 1, "malformed": 2}
    await desk.trail.look(status, WRITE_EVERY_S + 1)
    await desk.trail.look(status, 2 * WRITE_EVERY_S)
    await desk.trail.look(status, 3 * WRITE_EVERY_S)
    await desk.trail.ended("done", "", refused("eu-only", 5), 4 * WRITE_EVERY_S)
    assert desk.facts("wall_refusals") == [
        {"refused": {"eu-only": {"cloud": 4, "own": 4}}, "dead_letters": {"wall": 1}},
        {"refused": {"eu-only": {"cloud": 5, "own": 5}}, "dead_letters": {}},
    ]


async def test_a_run_that_a_budget_stopped_says_which_and_what_was_done(desk: Desk) -> None:
    await desk.began()
    tally = Tally(results=9, cost_nano=7, forfeit_nano=1, dead_letters={"too_long": 2})
    await desk.trail.ended("stopped_by_budget", "budget run/r-1 has $0 left", tally, 1.0)
    assert desk.facts("budget_stop") == [{"stopped": "budget run/r-1 has $0 left"}]
    assert desk.facts("run_ended") == [
        {
            "state": "stopped_by_budget",
            "results": 9,
            "dead_letters": {"too_long": 2},
            "cost_nano": 7,
            "forfeit_nano": 1,
        }
    ]


async def test_a_day_that_waits_for_money_is_told_once(desk: Desk) -> None:
    """Its words change with every cent."""
    await desk.began()
    status = RunStatus("r-1", "r", "running")
    for now in (10.0, 20.0, WRITE_EVERY_S, DAY_S + 10.0, DAY_S + WRITE_EVERY_S):
        status.waits_for_money = f"budget has ${now}"
        await desk.trail.look(status, now)
    assert [fact["waits"] for fact in desk.facts("budget_stop")] == ["budget has $10.0", f"budget has ${DAY_S + 10.0}"]


async def test_a_log_that_is_broken_refuses_a_run_before_it_sends(desk: Desk) -> None:
    await desk.began()
    (desk.folder / "audit" / "head.json").unlink()
    with pytest.raises(Corrupt, match="penstock audit verify"):
        await desk.began()


async def test_a_log_that_breaks_under_a_run_is_told_once_and_its_entries_wait(desk: Desk) -> None:
    """The run goes on; what was missed is written when the log is there again, with its own time."""
    await desk.began()
    head = desk.folder / "audit" / "head.json"
    kept = head.read_bytes()
    head.unlink()
    status = RunStatus("r-1", "r", "running")
    for at in range(1, 2 * MOST_WAITING):
        status.tally = refused("house", at)
        await desk.trail.look(status, at * WRITE_EVERY_S)
    assert len(desk.notes) == 1
    assert "head.json is gone" in desk.notes[0]
    head.write_bytes(kept)
    await desk.trail.ended("done", "", status.tally, 1e6)
    assert len(desk.facts("wall_refusals")) == MOST_WAITING - 1
    assert desk.entries()[-1].kind == "run_ended"


async def test_of_a_catalogue_too_large_for_one_entry_the_longest_parts_are_told_by_a_digest(tmp_path: Path) -> None:
    """The version still says which policy it was."""
    desk = Desk(tmp_path)
    models = {f"m{n}": Model(f"m{n}", (Version("v", "x"),), "v", account="us") for n in range(1000)}
    spec = msgspec.structs.replace(desk.trail._spec, catalog=Catalog(CATALOG.accounts, models, {}))  # pyright: ignore[reportPrivateUsage]
    await Trail(spec, RunOptions(), desk.notes.append).began(1, Planned(PLAN), 0.0)
    (policy,) = desk.facts("policy")
    assert (policy["policy_version"], "models" in policy) == ("pol1", False)
    assert policy["left_out"]["names"] == ["models"]  # type: ignore[index]


async def test_walls_that_keep_items_from_a_thousand_models_do_not_keep_the_end_out_of_the_log(desk: Desk) -> None:
    tally = Tally(
        refused={"eu-only": 1}, refused_models={f"eu-only|a-model-with-a-long-name-{n}": 1 for n in range(1000)}
    )
    await desk.trail.ended("done", "", tally, 1.0)
    assert [entry.kind for entry in desk.entries()] == ["wall_refusals", "run_ended"]
    assert desk.notes == []


async def test_a_model_that_answers_under_another_name_is_told_once_and_so_is_a_new_fingerprint(desk: Desk) -> None:
    row = ModelTally("cloud", "v1", answered_as={"gpt-x-2026-01-01": 3}, fingerprints={"fp1": 9})
    status = RunStatus("r-1", "r", "running", tally=Tally(models={"cloud@v1": row}))
    await desk.trail.look(status, 1.0)
    row.answered_as["gpt-y"] = 1
    row.fingerprints["fp2"] = 1
    for now in (2.0, 3.0):
        await desk.trail.look(status, now)
    await desk.trail.ended("done", "", status.tally, 4.0)
    alias, other, prints = desk.notes
    assert "an alias may mean another model any day" in alias
    assert "ANOTHER MODEL ANSWERS: 'gpt-y'; its answers are taken" in other
    assert "the provider's fingerprint was 'fp1' and is 'fp2' now" in prints
    common = {"model": "cloud", "version": "v1"}
    assert desk.facts("other_model") == [
        common | {"pinned": "gpt-x", "answered": "gpt-x-2026-01-01", "what": "alias"},
        common | {"pinned": "gpt-x", "answered": "gpt-y", "what": "other"},
        common | {"what": "fingerprint", "before": "fp1", "after": "fp2"},
    ]


async def met(folder: Path, model: str, *prints: str, run: str = "r-1", catalog: Catalog = CATALOG) -> Desk:
    """One command that was answered with these fingerprints."""
    desk = Desk(folder, run, catalog)
    await desk.began()
    row = ModelTally(model, catalog.models[model].live, fingerprints=dict.fromkeys(prints, 1))
    await desk.trail.ended("done", "", Tally(models={f"{row.model}@{row.version}": row}), 1.0)
    return desk


async def test_a_fingerprint_that_another_run_did_not_meet_is_told(tmp_path: Path) -> None:
    """The state remembers what the last command met; of several at once (a provider's machines differ) each is told
    once, not with each command."""
    assert (await met(tmp_path, "cloud", "fp1")).notes == []
    (note,) = (await met(tmp_path, "cloud", "fp2", "fp3", run="r-2")).notes[:1]
    assert "the provider's fingerprint was 'fp1' and is 'fp2' now" in note
    assert note.endswith("(the former one answered run r-1)")
    assert (await met(tmp_path, "cloud", "fp3", run="r-3")).notes == []
    last = await met(tmp_path, "cloud", "fp1", run="r-4")
    assert "was 'fp3' and is 'fp1' now" in last.notes[0]
    assert [(each["before"], each["after"]) for each in last.facts("other_model")] == [
        ("fp1", "fp2"),
        ("fp1", "fp3"),
        ("fp3", "fp1"),
    ]


async def test_an_own_engine_that_loads_other_weights_than_the_last_run_is_told(tmp_path: Path) -> None:
    """Its revision is a branch, which has moved."""
    old, new = "a" * 40, "b" * 40
    assert (await met(tmp_path, "own", old)).notes == []
    (note,) = (await met(tmp_path, "own", new, run="r-2")).notes
    assert f"own@v2: OTHER WEIGHTS WERE LOADED: commit {old} answered run r-1, and {new} answers now" in note


async def test_an_alias_is_told_once_a_state_and_again_where_it_means_another_model(tmp_path: Path) -> None:
    """From one dated snapshot to the next: the same name, and another model behind it."""
    old, new = "gpt-x-2026-01-01", "gpt-x-2026-05-05"

    async def answered(run: str, *names: str) -> Desk:
        desk = Desk(tmp_path, run)
        await desk.began()
        row = ModelTally("cloud", "v1", answered_as=dict.fromkeys(names, 1))
        await desk.trail.ended("done", "", Tally(models={"cloud@v1": row}), 1.0)
        return desk

    assert "so pin that name" in (await answered("r-1", old)).notes[0]
    assert (await answered("r-2", old)).notes == []
    (moved,) = (await answered("r-3", new)).notes
    assert f"THE ALIAS MEANS ANOTHER MODEL NOW: {old!r} answered run r-1, and {new!r} answers now" in moved
    wrong = await answered("r-4", "gpt-y")
    assert (await answered("r-5", "gpt-y")).notes == wrong.notes  # not asked for: told by every command
    common = {"model": "cloud", "version": "v1", "pinned": "gpt-x", "what": "alias"}
    assert wrong.facts("other_model")[:2] == [
        common | {"answered": old},
        common | {"answered": new, "before": old},
    ]


async def test_another_name_at_the_provider_is_no_changed_fingerprint(tmp_path: Path) -> None:
    """A version that was given another model answers otherwise by the catalogue's own word."""
    await met(tmp_path, "own", "a" * 40)
    other = msgspec.structs.replace(CATALOG.models["own"], versions=(Version("v2", "llama"),))
    moved = msgspec.structs.replace(CATALOG, models={**CATALOG.models, "own": other})
    assert (await met(tmp_path, "own", "b" * 40, run="r-2", catalog=moved)).notes == []


async def test_another_fingerprint_than_the_pinned_one_is_told_with_each_command(tmp_path: Path) -> None:
    pinned = Version("v1", "gpt-x", on_other_model="refuse", fingerprint="fp1")
    cloud = msgspec.structs.replace(CATALOG.models["cloud"], versions=(pinned,))
    catalog = msgspec.structs.replace(CATALOG, models={**CATALOG.models, "cloud": cloud})
    for run in ("r-1", "r-2"):
        desk = await met(tmp_path, "cloud", "fp1", "fp2", UNSAID, run=run, catalog=catalog)
        other, silent = desk.notes
        assert "pinned to the fingerprint 'fp1', and ANOTHER ONE ANSWERS: 'fp2'; these answers are refused" in other
        assert "and NONE IS TOLD; these answers are refused" in silent
    first = {"model": "cloud", "version": "v1", "pinned": "fp1", "answered": "fp2", "what": "fingerprint"}
    assert desk.facts("other_model")[0] == first


async def test_a_run_goes_on_where_fingerprints_cannot_be_remembered(tmp_path: Path) -> None:
    """It is told, twice: what was can't be compared with, and what is, is lost."""
    (tmp_path / "fingerprints.json").write_bytes(b"{")
    desk = await met(tmp_path, "cloud", "fp1")
    assert [word in note for word, note in zip(("can't be told", "not remembered"), desk.notes, strict=True)] == [
        True,
        True,
    ]
    assert [entry.kind for entry in desk.entries()][-1] == "run_ended"
