"""Models whose own names hold an `@`, as some providers write dates: named as judge, shadow, arm and candidate."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from penstock.engine.errors import SpecError
from penstock.engine.items import Attributes, Request, Route
from penstock.engine.router import Router
from penstock.jobs import spec as job_spec
from penstock.jobs.evals import running, view
from penstock.jobs.evals.asked import Asked, Variant, models_of
from penstock.workers.books.steering import named_pools
from penstock.workers.runspec import RunSpec
from tests.jobs.test_evals import Committed, attempt, fixed, told

JOB = """\
name: sort
source: rows.jsonl
accounts: {sandbox: {regions: [us]}, away: {protocol: openai, base_url: "https://away.example/v1"}}
models:
  - {name: claude, account: sandbox, model: c, price: {input_per_million: 1, output_per_million: 1}}
  - {name: claude@2024, account: away, price: {input_per_million: 2, output_per_million: 2}, live: v1,
     versions: [{id: v1, model: c1}, {id: v2@next, model: c2}]}
  - {name: claude@2025, account: sandbox, model: c25, price: {input_per_million: 3, output_per_million: 3}}
prompt: "Which? {{ text }}"
output: {choices: [billing, other]}
tiers: {1: [claude]}
shadow: {models: [claude@2025, claude@2024@v2@next], share: 0.5}
scorers:
  - {type: exact, expected: "{{ label }}"}
  - {type: judge, model: claude@2024, rubric: Polite?}
experiments:
  - {name: which, arms: [{name: x, model: claude@2025}, {name: y, version: claude@2024@v2@next}]}
sinks: out.jsonl
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fixed(10)))
    (tmp_path / "job.yaml").write_text(JOB)
    return job_spec.load("job.yaml")


@pytest.mark.parametrize(
    ("target", "model", "version", "account"),
    [
        ("claude", "claude", "c", "sandbox"),
        ("claude@2025", "claude@2025", "c25", "sandbox"),
        ("claude@2024", "claude@2024", "v1", "away"),
        ("claude@2024@v2@next", "claude@2024", "v2@next", "away"),
    ],
)
def test_a_judge_or_shadow_is_asked_at_the_model_that_was_named(
    base: RunSpec, target: str, model: str, version: str, account: str
) -> None:
    router = Router(base.catalog, base.policy)
    request = Request(b"{}", max_tokens=8)
    asked = router.route_step(Attributes(), request, Route("default", 1, (), (), ""), "shadow", target)
    assert isinstance(asked, Route)
    (candidate,) = asked.candidates
    assert (candidate.model, candidate.version) == (model, version)
    assert candidate.pool == f"api:{account}"


def test_arms_and_pools_are_those_of_the_model_that_was_named(base: RunSpec) -> None:
    ((x, y),) = [each.arms for each in base.policy.experiments]
    assert (x.model, y.version) == ("claude@2025", ("claude@2024", "v2@next"))
    assert named_pools(base.catalog, base.policy) == {"api:away"}


def test_a_version_that_is_not_there_is_told_by_the_model_that_lacks_it(base: RunSpec) -> None:
    for wrong, words in (
        ("claude@2024@v3", "model claude@2024 has no version `v3`"),
        ("claude@2026", "model claude has no version `2026`"),
        ("cloude@2024", "no model `cloude`"),
    ):
        Path("job.yaml").write_text(JOB.replace("[claude@2025, claude@2024@v2@next]", f"[{wrong}]"))
        with pytest.raises(SpecError, match=words):
            job_spec.load("job.yaml")
        with pytest.raises(SpecError, match=words):
            models_of(base.catalog, (wrong,))


@pytest.mark.parametrize(
    ("id", "words"),
    [
        ("2025", "`claude@2025` may be model claude@2025 or version 2025 of model claude"),
        ("2025@c25", "`claude@2025@c25` may be version 2025@c25 of model claude or version c25 of model claude@2025"),
    ],
)
def test_a_name_that_may_mean_two_models_is_refused(base: RunSpec, id: str, words: str) -> None:
    """Whoever is asked as a judge or shadow is paid, and sees the item."""
    Path("job.yaml").write_text(JOB.replace("model: c,", f'versions: [{{id: "{id}", model: c}}],'))
    with pytest.raises(SpecError, match=words):
        job_spec.load("job.yaml")


def test_candidates_are_told_apart_by_the_whole_name(base: RunSpec) -> None:
    """In the run, in what is read of its records, and as people are told. One whose call failed scores nothing; that
    says nothing of another whose name begins alike."""
    models = models_of(base.catalog, ("claude", "claude@2024", "claude@2024@v2@next", "claude@2025"))
    asked = Asked("sort", "default", models, {"": Variant()}, "exact")
    prepared = running.prepare("one", base, asked, None)
    (task,) = prepared.spec.policy.tasks.values()
    assert task.models == ("claude", "claude@2024", "claude@2024@v2@next", "claude@2025")
    made = Committed(prepared)
    made.result(
        0,
        [
            attempt(1, "primary", "claude"),
            attempt(2, "shadow", "claude@2024"),
            attempt(3, "shadow", "claude@2024"),
            attempt(4, "shadow", "claude@2025", "server_error"),
        ],
    )
    by = (("claude", "c"), ("claude@2024", "v1"), ("claude@2024", "v2@next"))
    for n, (model, version) in enumerate(by, 1):
        made.cost(0, n, "shadow", model, version, n * 1e-6)
        made.score(0, model, version, float(n == 2))
    made.result(1, [attempt(1, "primary", "claude@2024", "server_error")])
    seen = made.seen()
    (row,) = seen.rows
    assert [(x.score, x.failed, x.cost_nano) for x in row.answers] == [
        (0.0, False, 1000),
        (1.0, False, 2000),
        (0.0, False, 3000),
        (0.0, True, 0),
    ]
    words = view.Words(prepared)
    assert [words[name] for name in asked.names] == ["claude", "claude@2024@v1", "claude@2024@v2@next", "claude@2025"]
    assert "claude@2024@v2@next" in told(made.found())


def test_the_price_of_an_evaluation_is_that_of_the_models_that_were_named(base: RunSpec) -> None:
    models = models_of(base.catalog, ("claude", "claude@2025"))
    prepared = running.prepare("two", base, Asked("sort", "default", models, {"": Variant()}, "exact"), None)
    each = running.price(prepared, None)[0].each
    assert each["claude@2025@c25"].likely == pytest.approx(3 * each["claude@c"].likely)
    assert msgspec.structs.asdict(prepared.asked)["models"] == ("claude@c", "claude@2025@c25")
