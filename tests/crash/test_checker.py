"""The checker finds what it must find: each test plants one fault in a clean run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.look.committed import Finished, Line, Outputs, Reviewed, Sample, Tried, read_outputs
from penstock.jobs.look.verify import Paid, check
from tests.crash.checker import assert_clean

CALL_NANO = 1_500


def _item(n: int, *, tries: int = 1, maybe_paid: bool = False) -> Finished:
    tried = tuple(Tried(k, "primary" if k == 1 else "retry", f"r{n}.{k}", CALL_NANO) for k in range(1, tries + 1))
    return Finished(f"id{n}", f"row-{n}", 0, tried, CALL_NANO * tries, maybe_paid, sampled=n % 3 == 0)


def _clean(items: int) -> tuple[list[str], Outputs, list[Paid]]:
    """A run without fault: one item in seven took two calls, one in five ended in dead letters."""
    every = [_item(n, tries=2 if n % 7 == 0 else 1) for n in range(items)]
    results = tuple(i for n, i in enumerate(every) if n % 5 != 4)
    dead = tuple(msgspec.structs.replace(i, sampled=False) for n, i in enumerate(every) if n % 5 == 4)
    costs = tuple(
        Line(f"{i.item_id}:{t.n}", i.item_id, t.n, t.role, t.cost_nano, "metered", 10, 5)
        for i in every
        for t in i.tried
    )
    quality = tuple(Sample(i.item_id, "exact") for i in results if i.sampled)
    journal = [Paid(t.request_id or "", i.key, 0.0, 10, 5) for i in every for t in i.tried]
    return [i.key for i in every], Outputs(results, dead, costs, quality), journal


def _kinds(
    offered: list[str], outputs: Outputs, journal: list[Paid] | None = None, bound: int | None = None
) -> set[str]:
    return {v.kind for v in check(offered, outputs, journal, bound=bound).violations}


def _with(outputs: Outputs, **changes: object) -> Outputs:
    return msgspec.structs.replace(outputs, **changes)


@given(st.integers(0, 40))
def test_a_clean_run_passes(items: int) -> None:
    """No fault, no violation, whatever the size; the sums are right."""
    offered, outputs, journal = _clean(items)
    report = check(offered, outputs, journal, bound=0, price=lambda _: CALL_NANO)
    assert report.clean, str(report)
    assert report.results + report.dead_letters == report.offered == items
    assert report.cost_nano == CALL_NANO * len(journal)
    assert report.samples == len(outputs.quality)


def test_a_lost_item_is_found() -> None:
    """An item in neither results nor dead letters."""
    offered, outputs, _ = _clean(10)
    assert "lost" in _kinds(offered, _with(outputs, results=outputs.results[1:]))


def test_a_duplicate_is_found() -> None:
    """An item twice in results, or twice in dead letters."""
    offered, outputs, _ = _clean(10)
    assert "duplicate" in _kinds(offered, _with(outputs, results=(*outputs.results, outputs.results[0])))
    assert "duplicate" in _kinds(offered, _with(outputs, dead_letters=outputs.dead_letters * 2))


def test_an_item_in_both_outputs_is_found() -> None:
    """An item in results and in dead letters."""
    offered, outputs, _ = _clean(10)
    assert "both" in _kinds(offered, _with(outputs, dead_letters=(*outputs.dead_letters, outputs.results[0])))


def test_an_item_nobody_offered_is_found() -> None:
    """A committed item that wasn't in the input; and equal labels that came once too often."""
    offered, outputs, _ = _clean(10)
    assert "not_offered" in _kinds(offered[1:], outputs)
    again = msgspec.structs.replace(outputs.results[0], item_id="another", tried=(), cost_nano=0, sampled=False)
    assert "not_offered" in _kinds(offered, _with(outputs, results=(*outputs.results, again)))


def test_equal_labels_are_counted_each() -> None:
    """Where labels may repeat, two offered are two found, and one found is one lost."""
    a = Finished("id1", "same")
    b = Finished("id2", "same")
    assert check(["same", "same"], Outputs((a, b))).clean
    assert _kinds(["same", "same"], Outputs((a,))) == {"lost"}


def test_a_result_that_people_should_see_is_in_their_sink_once() -> None:
    """One that is missing, one that stands there twice, one of another generation, one that was not chosen."""
    offered, outputs, _ = _clean(10)

    def kinds(*review: Reviewed) -> set[str]:
        told = check(offered, _with(outputs, review=review), chosen=lambda one: one.key in ("row-1", "row-3"))
        return {violation.kind for violation in told.violations}

    one, three = Reviewed("id1"), Reviewed("id3")
    assert kinds(one, three) == set()
    assert kinds(one) == {"review_missing"}
    assert kinds(one, three, three) == {"review_duplicate"}
    assert kinds(one, Reviewed("id3", 1)) == {"review_missing", "review_orphan"}
    assert kinds(one, three, Reviewed("id2")) == kinds(one, three, Reviewed("id4")) == {"review_orphan"}
    assert _kinds(offered, _with(outputs, review=(Reviewed("id4"),))) == {"review_orphan"}, "a dead letter"


def test_a_second_payment_without_its_mark_is_found() -> None:
    """A served call that no record tells of: its item must say maybe_paid."""
    offered, outputs, journal = _clean(10)
    journal.append(Paid("lost-answer", "row-3", 0.0, 10, 5))
    assert _kinds(offered, outputs, journal) == {"unmarked"}


def test_a_marked_second_payment_within_the_bound_passes_and_is_counted() -> None:
    """Second payments are counted, not guessed."""
    offered, outputs, journal = _clean(10)
    marked = tuple(msgspec.structs.replace(r, maybe_paid=r.key == "row-3") for r in outputs.results)
    journal.append(Paid("lost-answer", "row-3", 0.0, 10, 5))
    report = check(offered, _with(outputs, results=marked), journal, bound=1)
    assert report.clean, str(report)
    assert (report.repeated, report.marked) == (1, 1)


def test_a_second_payment_is_linked_by_the_request_where_labels_are_unknown() -> None:
    """A provider knows no labels: equal requests have equal keys, and one of them is known."""
    offered, outputs, journal = _clean(10)
    hashed = [msgspec.structs.replace(p, key=f"hash-of-{p.key}") for p in journal]
    hashed.append(Paid("lost-answer", "hash-of-row-3", 0.0, 10, 5))
    assert _kinds(offered, outputs, hashed) == {"unmarked"}


def test_more_second_payments_than_promised_are_found() -> None:
    """Marked or not, there may be only so many."""
    offered, outputs, journal = _clean(10)
    marked = tuple(msgspec.structs.replace(r, maybe_paid=True) for r in outputs.results)
    journal += [Paid(f"lost-{n}", "row-3", 0.0, 10, 5) for n in range(3)]
    assert _kinds(offered, _with(outputs, results=marked), journal, bound=2) == {"too_many"}


def test_a_payment_for_an_unknown_item_is_found() -> None:
    """A served call that belongs to nothing committed."""
    offered, outputs, journal = _clean(10)
    assert _kinds(offered, outputs, [*journal, Paid("x", "nobody")]) == {"unknown_payment"}


def test_an_item_whose_every_answer_got_lost_explains_one_unknown_request() -> None:
    """It ended as a dead letter, after the third death of a worker that had it: the provider charged for each."""
    offered, outputs, journal = _clean(10)
    silent = Finished("id10", "row-10", 0, (Tried(1, "primary", None, 0),), maybe_paid=True)
    dead = _with(outputs, dead_letters=(*outputs.dead_letters, silent))
    thrice = [*journal, *(Paid(f"x{n}", "hash-of-row-10") for n in range(3))]
    assert check([*offered, "row-10"], dead, thrice, bound=3).clean
    assert _kinds([*offered, "row-10"], dead, [*thrice, Paid("y", "nobody")]) == {"unknown_payment"}
    unmarked = _with(dead, dead_letters=(*outputs.dead_letters, msgspec.structs.replace(silent, maybe_paid=False)))
    assert _kinds([*offered, "row-10"], unmarked, thrice) == {"unknown_payment"}


def test_a_bill_for_a_call_that_was_never_served_is_found() -> None:
    """Metered cost needs a served call."""
    offered, outputs, journal = _clean(10)
    assert _kinds(offered, outputs, journal[1:]) == {"unserved"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda c: c[1:], "cost_line_missing"),
        (lambda c: (*c, c[0]), "cost_line_duplicate"),
        (lambda c: (*c, msgspec.structs.replace(c[0], entry_id="again")), "cost_line_duplicate"),
        (lambda c: (*c, msgspec.structs.replace(c[0], entry_id="x", item_id="nobody")), "cost_line_orphan"),
        (lambda c: (*c, msgspec.structs.replace(c[0], entry_id="x", attempt=9)), "cost_line_orphan"),
        (lambda c: (msgspec.structs.replace(c[0], cost_nano=CALL_NANO + 1), *c[1:]), "wrong_bill"),
        (lambda c: (msgspec.structs.replace(c[0], output=6), *c[1:]), "wrong_bill"),
    ],
)
def test_a_wrong_costs_file_is_found(change: object, kind: str) -> None:
    """Lines missing, doubled, orphaned; one nano-dollar or one token too many."""
    offered, outputs, journal = _clean(10)
    assert callable(change)
    assert kind in _kinds(offered, _with(outputs, costs=change(outputs.costs)), journal)


def test_a_wrong_price_is_found() -> None:
    """Record, line and sums agree, and all are wrong: the price table shows it."""
    offered, outputs, journal = _clean(10)
    report = check(offered, outputs, journal, price=lambda _: CALL_NANO - 1)
    assert {v.kind for v in report.violations} == {"wrong_bill"}


def test_a_record_that_disagrees_with_its_attempts_is_found() -> None:
    """cost_usd is the sum of the attempts, and the records' sum is the costs' sum."""
    offered, outputs, _ = _clean(10)
    first = msgspec.structs.replace(outputs.results[0], cost_nano=1)
    assert _kinds(offered, _with(outputs, results=(first, *outputs.results[1:]))) == {"wrong_bill"}


def test_each_generation_of_an_item_has_its_own_bill() -> None:
    """A dead letter that was replayed: the same item, a new generation, calls counted from one again."""
    dead = Finished("id1", "row-1", 0, (Tried(1, "primary", "r1", 5),), 5)
    again = Finished("id1", "row-1", 1, (Tried(1, "primary", "r2", 7),), 7)
    first = Line("id1:0:1", "id1", 1, "primary", 5, "metered", 1, 1)
    second = Line("id1:1:1", "id1", 1, "primary", 7, "metered", 1, 1, generation=1)
    journal = [Paid("r1", "id1", 0.0, 1, 1), Paid("r2", "id1", 0.0, 1, 1)]
    whole = Outputs((again,), (dead,), (first, second))
    assert check(["row-1"], whole, journal, bound=0).clean
    assert _kinds(["row-1"], _with(whole, costs=(first,)), journal) == {"cost_line_missing", "wrong_bill"}


def test_closing_adjustments_are_no_items_bill() -> None:
    """An own GPU's load and idle hours are in costs and in no record."""
    offered, outputs, _ = _clean(10)
    closing = Line("close", None, 0, "adjustment", 5_000, "amortised")
    assert check(offered, _with(outputs, costs=(*outputs.costs, closing))).clean


def test_wrong_quality_files_are_found() -> None:
    """A sampled result without its line, a line without its result, a line twice."""
    offered, outputs, _ = _clean(10)
    assert _kinds(offered, _with(outputs, quality=outputs.quality[1:])) == {"sample_missing"}
    assert _kinds(offered, _with(outputs, quality=(*outputs.quality, Sample("id4", "exact")))) == {"sample_orphan"}
    assert _kinds(offered, _with(outputs, quality=outputs.quality * 2)) == {"sample_duplicate"}


def test_outputs_are_read_as_the_records_are_written(tmp_path: Path) -> None:
    """Both shapes of results; money to the nano-dollar; the file's faults are named by label."""
    penstock = {
        "item_id": "id1",
        "attempts": [{"n": 1, "role": "primary", "request_id": "r1", "cost_usd": 0.0000015, "model": "opus"}],
        "cost_usd": 0.0000015,
        "maybe_paid": True,
        "source": {"split": "s", "position": 42},
    }
    lines = {
        "results": [{"id": "a", "custom_id": "row-1", "response": {}, "penstock": penstock}],
        "dead_letters": [{"item_id": "id2", "custom_id": "row-2", "reason": "wall", "attempts": [], "cost_usd": 0}],
        "costs": [
            {
                "entry_id": "id1:0:1",
                "item_id": "id1",
                "attempt": 1,
                "role": "primary",
                "usd": 0.0000015,
                "basis": "metered",
                "tokens": {"input": 3, "output": 1},
            }
        ],
    }
    paths = {name: [tmp_path / f"{name}.jsonl"] for name in lines}
    for name, records in lines.items():
        paths[name][0].write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in records))
    report = assert_clean(["row-1", "row-2"], paths, [Paid("r1", "?", 0.0, 3, 1), Paid("r0", "?")], bound=1)
    assert (report.cost_nano, report.repeated, report.marked) == (1500, 1, 1)
    assert read_outputs(paths, "position").results[0].key == "s@42"
    with pytest.raises(AssertionError, match="lost: row-3"):
        assert_clean(["row-1", "row-2", "row-3"], paths)
