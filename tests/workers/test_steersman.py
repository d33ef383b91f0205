"""Drivers pass the steering on and judge rollouts: one of them decides, the audit log tells it, no lane is left out."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.audit import open_audit
from penstock.connectors.calibrations import write_judges
from penstock.connectors.documents import Absent, Tag
from penstock.connectors.state import FolderState, open_state
from penstock.connectors.steering import KEY, SteeringFile
from penstock.engine.catalog import Account, Catalog, Model, Version
from penstock.engine.errors import Corrupt, SpecError, Temporary
from penstock.engine.flow.cells import Cell, Scored
from penstock.engine.measure.agreement import agreement
from penstock.engine.policy import Arm, Experiment, Policy, Shadow, Task
from penstock.engine.steering import document
from penstock.engine.steering.document import Steering
from penstock.engine.steering.evidence import guards, judged
from penstock.engine.steering.judges import Calibration
from penstock.engine.steering.rollout import SHADOW, UNPAID, How, Rollout, Shadowing, begin, said, see
from penstock.engine.steering.turn import Turn
from penstock.engine.steering.words import MOST_CHARS
from penstock.workers.books.steering import JUDGE_EVERY_S, OWED_S, Steersman, named_pools
from penstock.workers.fleet import first_pools

SMALL = Model("small", (Version("v1", "s1"), Version("v2", "s2")), "v1", account="a")
CATALOG = Catalog({"a": Account("a", "openai", "http://localhost")}, {"small": SMALL}, {3: ("small",)})


SHADOWED, BESIDE = ("small", ("v1", "v2"), (0.5,)), How(shadow=Shadowing(1.0, 10**9))


def rolling(*names: str, now: float = 0.0) -> Rollout:
    return begin("small", ("v1", "v2"), (0.1, 0.5), guards(names or ("quality",)), by="ann", now=now)


def cell(at: Rollout, side: str, items: int, good: int, **fields: object) -> Cell:
    """`good` of the scored items are right."""
    scored = Scored(passed=good, counts={0: items - good, 1_000: good})
    version = at.candidate if side == "candidate" else at.baseline
    made = Cell("t", "small", version, "", "", "", at.id, at.arm(side), items=items, results=items, calls=items)
    made.scores = {"exact@1": scored}
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class Lanes:
    """What the lanes were told, in order."""

    def __init__(self) -> None:
        self.told: list[Steering] = []

    async def steer(self, data: bytes) -> None:
        self.told.append(msgspec.json.decode(data, type=Steering))


class Seat:
    """One driver at a state."""

    def __init__(self, url: str, cells: list[Cell]) -> None:
        self.lanes, self.notes = Lanes(), list[str]()
        self.hand = Steersman(url, CATALOG, lambda: cells, self.notes.append)
        self.now = 0.0

    async def look(self) -> None:
        self.now += JUDGE_EVERY_S
        await self.hand.look(self.lanes.steer, self.now)

    @property
    def last(self) -> Rollout:
        return self.lanes.told[-1].rollouts["small"]


# ---- what guards say to cells


def test_a_guard_sees_only_its_own_rollout_and_each_scorer_by_itself() -> None:
    at, other = rolling(), rolling(now=9.0)
    cells = [cell(at, "baseline", 3_600, 3_100), cell(at, "candidate", 400, 300), cell(other, "candidate", 400, 399)]
    (told,) = judged(at, cells)
    assert (told.guard, told.decision, told.items) == ("quality exact@1", "fail", 400)
    assert told.why == (
        "quality by scorer exact: 0.75 against 0.86 of v1 over 400 scored items; "
        "a loss is shown (chance of a false alarm at most 1 %)"
    )
    assert judged(at, [])[0].why == "quality: no item was scored yet"


@pytest.mark.parametrize(
    ("guard", "worse", "said"),
    [
        (
            "error_rate",
            {"results": 900},
            "10.0 % against 0.0 % of v1 over 1,000 items; a rise of more than 1 point is shown",
        ),
        (
            "refusals",
            {"failures": {"refused": 100}},
            "10.0 % against 0.0 % of v1 over 1,000 items; a rise of more than 1 point is shown",
        ),
        (
            "cost",
            {"cost_n": 1_000, "cost_ln": 1_000 * 7_300, "cost_ln2": 1_000 * 7_300**2 + 10**7},
            "1.35 times that of v1 over 1,000 items; more than 1.1 times as much is shown",
        ),
        (
            "latency",
            {"ms_ln": 1_000 * 7_500, "ms_ln2": 1_000 * 7_500**2 + 10**8},
            "1.65 times that of v1 over 1,000 items; more than 1.25 times as much is shown",
        ),
    ],
)
def test_each_cheap_guard_finds_what_it_is_for_and_nothing_in_equal_arms(
    guard: str, worse: dict[str, object], said: str
) -> None:
    at = rolling(guard)
    same = {"cost_n": 1_000, "cost_ln": 7_000_000, "cost_ln2": 1_000 * 7_000**2 + 10**7} | {
        "ms_ln": 7_000_000,
        "ms_ln2": 1_000 * 7_000**2 + 10**7,
    }
    base = cell(at, "baseline", 1_000, 900, **same)
    (equal,) = judged(at, [base, cell(at, "candidate", 1_000, 900, **same)])
    assert equal.decision in ("pass", "go on")
    assert "shown (chance" not in equal.why
    (bad,) = judged(at, [base, cell(at, "candidate", 1_000, 900, **(same | worse))])
    assert bad.decision == "fail", bad
    assert bad.guard == guard
    assert bad.why == f"{guard}: {said} (chance of a false alarm at most 1 %)"


def test_a_version_that_costs_nothing_passes_its_stage_and_one_that_does_beside_it_fails() -> None:
    """Nothing has no logarithm; and a few items that were free say nothing of it."""
    paid = {"cost_n": 1_000, "cost_ln": 7_000_000, "cost_ln2": 1_000 * 7_000**2 + 10**7}
    for base, other, items, decision in (
        ({}, {}, 1_000, "pass"),
        ({}, {}, 999, "go on"),
        (paid, {}, 1_000, "pass"),
        ({}, paid, 1_000, "fail"),
        ({}, {"cost_n": 1, "cost_ln": 7_000, "cost_ln2": 7_000**2}, 1_000, "go on"),
    ):
        for at in (rolling("cost"), begin(*SHADOWED, guards(["cost"]), by="ann", now=0.0, how=BESIDE)):
            role = "shadow" if at.stage == SHADOW else ""
            cells = [cell(at, "baseline", items, 0, **base), cell(at, "candidate", items, 0, role=role, **other)]
            assert judged(at, cells)[0].decision == decision


def scored_by(scorer: str, made: Cell) -> Cell:
    made.scores = {scorer: made.scores["exact@1"]}
    return made


def test_a_stage_waits_for_the_scorers_that_score_it_and_for_no_other() -> None:
    """One that was edited since, or a trial's: neither will ever have scores enough. A loss that it shows counts."""
    at = said(rolling(), "promote", "ann", 1.0)  # one stage further
    assert at.stage == 1
    early = [cell(rolling(), side, 900, 800) for side in ("baseline", "candidate")]
    edited = [scored_by("exact@2", cell(at, side, 900, 800)) for side in ("baseline", "candidate")]

    def trial(good: int) -> list[Cell]:
        return [scored_by("other@1", cell(at, side, 80, g)) for side, g in (("baseline", 80), ("candidate", good))]

    for cells, decisions, state in (
        (early, ["go on"], None),
        ([*early, *edited], ["go on", "pass"], "promoted"),
        ([*early, *edited, *trial(79)], ["go on", "pass", "go on"], "promoted"),
        ([*early, *edited, *trial(20)], ["go on", "pass", "fail"], "rolled_back"),
        ([*edited[:1], *[scored_by("exact@2", cell(at, "candidate", 300, 266))], *trial(79)], ["go on", "go on"], None),
    ):
        told = judged(at, cells)
        after = see(at, told, 2.0)
        assert [each.decision for each in told] == decisions
        assert (after.state if after else None) == state


# ---- drivers


async def test_a_worse_version_is_taken_back_by_whoever_looks_first_and_told_to_all_lanes(tmp_path: Path) -> None:
    at, cells, url = rolling(), list[Cell](), str(tmp_path)
    SteeringFile(url).change(lambda now: document.started(now, at))
    one, two = Seat(url, cells), Seat(url, cells)
    for seat in (one, two):
        await seat.hand.first(seat.lanes.steer)
        await seat.look()
        assert seat.last.decisions == at.decisions
    cells += [cell(at, "baseline", 3_600, 3_100), cell(at, "candidate", 400, 300)]
    await one.look()
    await two.look()
    assert one.last == two.last
    assert (one.last.state, len(one.last.decisions)) == ("rolled_back", 2)
    assert one.lanes.told[-1].live == {"small": "v1"}
    assert "rollout small v1 → v2: rolled_back" in one.notes[-1]
    entries = [entry for entry in open_audit(url).entries() if entry.kind == "rollback"]
    assert len(entries) == 1
    assert b'"guard":"quality exact@1"' in bytes(entries[0].facts)


async def test_a_judge_decides_from_the_moment_on_that_it_is_calibrated(tmp_path: Path) -> None:
    """Calibrated or not is read with each look: running jobs hear of it. Until then it informs."""
    at, url = rolling(), str(tmp_path)
    SteeringFile(url).change(lambda now: document.started(now, at))
    cells = [cell(at, "baseline", 3_600, 3_100), cell(at, "candidate", 400, 300)]
    for each in cells:
        each.scores = {"judge@1": each.scores["exact@1"]}
    seat = Seat(url, cells)
    await seat.hand.first(seat.lanes.steer)
    await seat.look()
    assert seat.last.decisions == at.decisions
    agreed = agreement([[60, 0], [0, 40]])
    assert agreed is not None
    known = Calibration("judge@1", "opus", 60, 40, agreed, "run", "now", "ann")
    write_judges(open_state(url), [msgspec.structs.replace(known, scorer="judge@2")])
    await seat.look()
    assert seat.last.decisions == at.decisions  # that is another judge
    write_judges(open_state(url), [known])
    await seat.look()
    assert seat.last.state == "rolled_back"


async def test_stages_go_forward_one_by_one_however_many_drivers_look(tmp_path: Path) -> None:
    at, cells, url = rolling(), list[Cell](), str(tmp_path)
    SteeringFile(url).change(lambda now: document.started(now, at))
    seats = [Seat(url, cells) for _ in range(4)]
    for seat in seats:
        await seat.hand.first(seat.lanes.steer)
    for stage in range(2):
        at = SteeringFile(url).read()[0].rollouts["small"]  # type: ignore[index]
        assert at.stage == stage
        cells += [cell(at, "baseline", 900, 810), cell(at, "candidate", 600, 540)]
        for _ in range(2):
            for seat in seats:
                await seat.look()
    last = SteeringFile(url).read()[0]  # type: ignore[index]
    assert last.live == {"small": "v2"}
    assert [d.what for d in last.rollouts["small"].decisions] == ["started", "stage", "promoted"]
    assert [e.kind for e in open_audit(url).entries()] == ["rollout_started", "stage", "rollout_ended"]


async def test_a_shadow_stage_is_judged_in_pairs_and_waits_for_a_person_when_its_money_is_spent(tmp_path: Path) -> None:
    how = How(shadow=Shadowing(0.1, 10**9))
    begun = begin("small", ("v1", "v2"), (0.5,), guards(["quality"]), by="ann", now=0.0, how=how)
    for differs, unpaid, state, stage in (
        ({-1_000: 60, 0: 340}, 0, "rolled_back", SHADOW),
        ({-1_000: 40, 0: 920, 1_000: 40}, 0, "running", 0),
        ({0: 20}, UNPAID, "waiting", SHADOW),
        ({0: 20}, UNPAID - 1, "running", SHADOW),
    ):
        url = str(tmp_path / f"{state}-{unpaid}-{stage}")
        SteeringFile(url).change(lambda now: document.started(now, begun))
        live = Cell("t", "small", "v1", "", "", "", begun.id, "baseline-0", items=9_000, results=9_000, unpaid=unpaid)
        n = sum(differs.values())
        beside = Cell("t", "small", "v2", "", "", "shadow", begun.id, "candidate-0", items=n, results=n)
        beside.pairs["exact@1"] = Scored(counts=differs)
        seats = [Seat(url, [live, beside]) for _ in range(3)]
        for seat in seats:
            await seat.hand.first(seat.lanes.steer)
            assert seat.hand.pools() == set()
        for seat in seats:
            await seat.look()
        last = SteeringFile(url).read()[0].rollouts["small"]  # type: ignore[index]
        assert (last.state, last.stage) == (state, stage)
        assert len(last.decisions) == (1 if state == "running" and stage == SHADOW else 2)


async def test_an_engine_that_a_task_names_for_itself_is_not_let_go_when_no_rollout_needs_it(tmp_path: Path) -> None:
    """Its shadow or an arm of an experiment asks for it now and then: else it would come and go."""
    own = msgspec.structs.replace(SMALL, account=None, worker="vllm")
    catalog = msgspec.structs.replace(CATALOG, models={"small": own})
    shadowed = Policy({"t": Task("t", shadow=Shadow(("small@v2",), 0.1))})
    armed = Policy(
        {"t": Task("t")}, experiments=(Experiment("j/x", "t", (Arm("a"), Arm("b", version=("small", "v2")))),)
    )
    assert named_pools(catalog, shadowed) == named_pools(catalog, armed) == {"vllm:small@v2"}
    assert named_pools(catalog, Policy({"t": Task("t", shadow=Shadow(("small",), 0.1))})) == frozenset()
    for policy, left in ((shadowed, set[str]()), (None, {"vllm:small@v2"})):
        file, lanes = SteeringFile(str(tmp_path / str(len(left)))), Lanes()
        file.change(lambda now: document.started(now, rolling()))
        hand = Steersman(str(tmp_path / str(len(left))), catalog, list, list[str]().append, policy)
        await hand.first(lanes.steer)
        file.change(lambda now: document.spoken(now, "small", "rollback", "ann", 1.0))
        await hand.look(lanes.steer, 1.0)
        assert hand.left() == left


async def test_a_version_that_gets_worse_after_its_promotion_is_taken_back_by_what_its_round_shows(
    tmp_path: Path,
) -> None:
    """What went before does not hide it; a round without a finding is followed by the next, each decided once."""
    url, how = str(tmp_path), How(watch=0.02)
    begun = begin("small", ("v1", "v2"), (0.5,), guards(["quality"]), by="ann", now=0.0, how=how)
    SteeringFile(url).change(lambda now: document.started(now, begun))
    cells = list[Cell]()
    seats = [Seat(url, cells) for _ in range(3)]

    async def look() -> Rollout:
        for seat in seats:
            await seat.hand.first(seat.lanes.steer)
            await seat.look()
        return SteeringFile(url).read()[0].rollouts["small"]  # type: ignore[index]

    cells += [cell(begun, "baseline", 900, 810), cell(begun, "candidate", 900, 810)]
    at = await look()
    assert (at.state, at.round) == ("watching", 1)
    cells += [cell(at, "baseline", 700, 630), cell(at, "candidate", 30_000, 27_000)]
    assert (await look()).round == 1, "it is the old version's items that a round counts"
    cells += [cell(at, "baseline", 50, 45)]
    at = await look()
    assert at.round == 2
    cells += [cell(at, "baseline", 300, 270), cell(at, "candidate", 15_000, 12_000)]
    at = await look()
    assert (at.state, len(at.decisions)) == ("rolled_back", 4)
    assert "at most 0.1 %" in at.decisions[-1].why
    assert SteeringFile(url).read()[0].live == {"small": "v1"}  # type: ignore[index]


async def test_a_driver_that_starts_tells_its_lanes_before_they_send_and_refuses_to_guess(tmp_path: Path) -> None:
    seat = Seat(str(tmp_path), [])
    await seat.hand.first(seat.lanes.steer)
    assert seat.lanes.told == [Steering()]
    (tmp_path / KEY).write_bytes(b"{")
    blind = Seat(str(tmp_path), [])
    with pytest.raises(Corrupt, match=r"steering.json in .* can't be read"):
        await blind.hand.first(blind.lanes.steer)
    await seat.look()
    await seat.look()
    assert len(seat.notes) == 1  # what can't be read now is told once; the lanes go on as they were told


async def test_a_version_whose_engine_cannot_be_started_is_taken_back(tmp_path: Path) -> None:
    """No guard would ever see an item of it. Another pool's trouble is no reason, nor where a person decides."""
    own = msgspec.structs.replace(SMALL, account=None, worker="vllm")
    catalog = msgspec.structs.replace(CATALOG, models={"small": own})
    for auto, pool, state in (
        (True, "vllm:small@v2", "rolled_back"),
        (True, "vllm:small@v1", "running"),
        (False, "vllm:small@v2", "running"),
    ):
        url = str(tmp_path / f"{auto}-{pool[-2:]}")
        at = msgspec.structs.replace(rolling(), auto=auto)
        SteeringFile(url).change(lambda now, at=at: document.started(now, at))
        lanes, notes = Lanes(), list[str]()
        hand = Steersman(url, catalog, list, notes.append)
        await hand.first(lanes.steer)
        assert hand.pools() == {"vllm:small@v1", "vllm:small@v2"}
        await hand.pool_down(lanes.steer, pool, "no such folder", 5.0)
        last = lanes.told[-1].rollouts["small"]
        assert last.state == state
        assert hand.left() == ({"vllm:small@v2"} if state == "rolled_back" else set())
        assert (last.decisions[-1].why == "its engine can't be started: no such folder") == (state == "rolled_back")


async def test_a_catalogue_that_names_another_live_version_than_a_rollout_left_is_told(tmp_path: Path) -> None:
    """Who edits `live:` after a rollback waits for nothing; who left it as it was before a promotion does not."""
    url, back = str(tmp_path), said(rolling(), "rollback", "ann", 1.0)
    SteeringFile(url).change(lambda steering: document.with_rollout(document.with_rollout(steering, rolling()), back))
    edited = msgspec.structs.replace(CATALOG, models={"small": msgspec.structs.replace(SMALL, live="v2")})
    for catalog, told in ((edited, 1), (CATALOG, 0)):
        notes: list[str] = []
        hand = Steersman(url, catalog, list, notes.append)
        await hand.first(Lanes().steer)
        await hand.look(Lanes().steer, 100.0)
        found = [note for note in notes if "says that v2 is live" in note]
        assert len(found) == told
        assert all("(rolled back) that v1 is" in note and "rollout start small v2" in note for note in found)
    promoted = said(said(rolling(), "promote", "ann", 2.0), "promote", "ann", 3.0)
    watched = begin("small", ("v1", "v2"), (0.5,), guards(["quality"]), by="ann", now=0.0, how=How(watch=0.02))
    watching = said(watched, "promote", "ann", 2.0)
    assert (promoted.state, watching.state) == ("promoted", "watching")
    for at in (promoted, watching):
        after = SteeringFile(url).change(lambda steering, at=at: document.with_rollout(steering, at))
        assert after is not None
        assert after.live == {"small": "v2"}
        notes = []
        await Steersman(url, CATALOG, list, notes.append).first(Lanes().steer)
        assert not [note for note in notes if "catalogue says" in note]


async def test_a_job_whose_catalogue_lacks_the_version_says_so_once(tmp_path: Path) -> None:
    at = msgspec.structs.replace(rolling(), candidate="v9")
    SteeringFile(str(tmp_path)).change(lambda now: document.started(now, at))
    seat = Seat(str(tmp_path), [])
    await seat.hand.first(seat.lanes.steer)
    for _ in range(3):
        await seat.look()
    assert [note for note in seat.notes if "small@v9 is not in this job's catalogue" in note] == seat.notes[:1]


# ---- the document


class Halting(FolderState):
    """Fails a write of the audit log, as a process that dies after its decision would."""

    def put(self, key: str, value: bytes, expect: Tag | Absent | None) -> Tag:
        if key.startswith("audit/"):
            raise Temporary("the disk is away")
        return super().put(key, value, expect)  # type: ignore[arg-type]


async def test_a_decision_whose_writer_died_is_written_down_by_another(tmp_path: Path) -> None:
    url = str(tmp_path)
    SteeringFile(url, Halting(tmp_path)).change(lambda now: document.started(now, rolling()))
    seat = Seat(url, [])
    await seat.hand.first(seat.lanes.steer)
    await seat.look()
    assert list(open_audit(url).entries()) == []  # it may be under way still
    seat.now += OWED_S
    await seat.look()
    assert [e.kind for e in open_audit(url).entries()] == ["rollout_started"]
    assert SteeringFile(url).read()[0].owed == ()  # type: ignore[index]


async def test_an_audit_log_that_cannot_be_written_keeps_no_bad_version_answering(tmp_path: Path) -> None:
    """The debt is told once and stays."""
    url, at = str(tmp_path), rolling()
    SteeringFile(url).change(lambda now: document.started(now, at))
    (tmp_path / "audit").write_bytes(b"")  # no folder
    seat = Seat(url, [cell(at, "baseline", 900, 800), cell(at, "candidate", 900, 200)])
    await seat.hand.first(seat.lanes.steer)
    seat.now += OWED_S
    for _ in range(3):
        await seat.look()
    assert seat.last.state == "rolled_back"
    assert len(SteeringFile(url).read()[0].owed) == 2  # type: ignore[index]
    assert sum("the audit log lacks" in note for note in seat.notes) == 1


def test_a_reason_as_long_as_a_log_is_cut_and_the_word_is_obeyed(tmp_path: Path) -> None:
    file, log = SteeringFile(str(tmp_path)), "x" * 40_000
    file.change(lambda now: document.started(now, rolling()))
    after = file.change(lambda now: document.spoken(now, "small", "rollback", "ann", 1.0, log))
    assert after is not None
    after = file.change(lambda now: document.with_experiment(now, "j/x", document.Stopped(2.0, "ann", log)))
    assert after is not None
    file.pay(after.owed)
    for why in (after.rollouts["small"].decisions[-1].why, after.experiments["j/x"].why):
        assert why == "x" * MOST_CHARS + " … (38,000 more characters were left out)"
    assert [e.kind for e in open_audit(str(tmp_path)).entries()] == ["rollout_started", "rollback", "rollout_ended"]


def test_ten_who_change_the_document_at_once_lose_nothing(tmp_path: Path) -> None:
    def change(number: int) -> None:
        file, dice = SteeringFile("x", open_state(str(tmp_path))), random.Random(number)
        for n in range(5):
            at = begin(f"m{number}", ("v1", f"v{n + 2}"), (0.5,), guards(["quality"]), by="ann", now=dice.random())
            file.change(lambda now, at=at: document.started(now, at))
            file.change(lambda now: document.with_rollout(now, said(now.rollouts[f"m{number}"], "rollback", "ann", 1)))

    threads = [threading.Thread(target=change, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = SteeringFile("x", open_state(str(tmp_path))).read()
    assert found is not None
    assert (found[0].number, len(found[0].owed)) == (100, 100)
    assert {at.candidate for at in found[0].rollouts.values()} == {"v6"}


def test_a_word_on_a_model_without_a_rollout_says_which_had_one(tmp_path: Path) -> None:
    file = SteeringFile(str(tmp_path))
    with pytest.raises(SpecError, match="large never had a rollout here; models that had one: none yet"):
        file.change(lambda now: document.spoken(now, "large", "rollback", "ann", 1.0))


def test_engines_are_started_of_versions_that_are_in_use_and_of_no_others() -> None:
    """What the catalogue calls live may have been replaced; accounts serve all their models' versions."""
    own = msgspec.structs.replace(SMALL, name="own", account=None, worker="vllm")
    catalog = msgspec.structs.replace(CATALOG, models={"small": SMALL, "own": own}, tiers={2: ("small",), 3: ("own",)})
    at = begin("own", ("v1", "v2"), (0.1,), guards(["cost"]), by="ann", now=1.0)
    began = document.started(Steering(), at)
    for steering, pools in (
        (Steering(), ["api:a", "vllm:own@v1"]),
        (began, ["api:a", "vllm:own@v1", "vllm:own@v2"]),
        (document.with_rollout(began, said(at, "promote", "ann", 2.0)), ["api:a", "vllm:own@v2"]),
    ):
        turn = Turn(catalog.models, steering)
        assert first_pools(catalog, {own.pool_of(version) for version in turn.versions(own)}) == pools
