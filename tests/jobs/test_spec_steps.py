"""Judges, shadows and their budgets, as the job file says them."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.engine.budget import Budget
from penstock.engine.errors import SpecError
from penstock.engine.policy import Cascade, Experiment, Scorer, Shadow
from penstock.jobs import spec
from penstock.workers.runspec import RunSpec

BASE = """\
source: messages.csv
models:
  - sandbox/a
  - {name: b, account: sandbox, price: free, versions: [{id: v1, model: b}, {id: v2, model: b-2}], live: v1}
  - {name: judge, account: sandbox, model: j, price: free}
tiers: {1: [sandbox/a]}
sinks: out.jsonl
prompt: "{{ text }}"
"""
USD = 1_000_000_000


def job(folder: Path, text: str) -> RunSpec:
    (folder / "job.yaml").write_text(BASE + text)
    return spec.load(folder / "job.yaml")


def test_a_judge_a_pairwise_judge_and_a_shadow_are_read(tmp_path: Path) -> None:
    """A scale becomes its grades, words go from the worst to the best, a shadow may be a version."""
    loaded = job(
        tmp_path,
        """\
sample: 0.1
shadow: {models: [b@v2, b], share: 0.05}
scorers:
  - {type: judge, model: judge, rubric: Polite?, scale: [0, 3], samples: 2, params: {max_tokens: 200}}
  - {type: judge, model: judge, rubric: Polite?, choices: [bad, fair, good]}
  - {type: judge, model: judge, rubric: Politer?, pairwise: true, expected: "{{ best }}"}
  - {type: judge, model: judge, rubric: Polite?}
budgets: [{usd: 25}, {usd: 2, for: shadow, per: day}, {usd: 1, for: judge, tenant: "*"}]
""",
    )
    task = loaded.policy.tasks["default"]
    assert task.shadow == Shadow(("b@v2", "b"), 0.05)
    assert (task.sample, task.sample_share) == (0.1, 0.1)
    grades, words, pair, usual = task.scorers
    params = b'{"max_tokens":200}'
    assert grades == Scorer(
        "judge", model="judge", rubric="Polite?", choices=("0", "1", "2", "3"), samples=2, params_json=params
    )
    assert words.choices == ("bad", "fair", "good")
    assert (pair.pairwise, pair.choices, pair.expected) == (True, (), "{{ best }}")
    assert usual.choices == ("1", "2", "3", "4", "5")
    assert loaded.budgets == (
        Budget(25 * USD),
        Budget(2 * USD, "day", role="shadow"),
        Budget(USD, tenant="*", role="judge"),
    )


def test_what_only_measures_changes_no_answer(tmp_path: Path) -> None:
    """A judge or shadow may come and go while a run goes on: the fingerprint stays. Their keys are needed, though."""
    plain = job(tmp_path, "")
    measured = job(
        tmp_path,
        "shadow: {models: [b], share: 0.5}\nscorers: [{type: judge, model: judge, rubric: Polite?}]\n",
    )
    assert measured.fingerprint == plain.fingerprint
    assert measured.policy.version != plain.policy.version
    told = dict(spec.describe(measured))
    assert {"model b", "model judge"} <= told.keys()
    assert not [line for line in spec.warnings(measured) if "in no tier" in line]


def test_a_cascade_is_read_and_changes_answers(tmp_path: Path) -> None:
    """Its models are candidates: the fingerprint holds it, and its threshold."""
    text = "cascade: {{models: [b, sandbox/a], signal: agreement, threshold: {0}, samples: 5}}\n"
    one, other = (job(tmp_path, text.format(threshold)) for threshold in (0.6, 0.8))
    task = one.policy.tasks["default"]
    assert task.cascade == Cascade(("b", "sandbox/a"), "agreement", 0.6, 5)
    assert one.fingerprint != other.fingerprint
    assert "model b" in one.fingerprint
    valid = job(tmp_path, "cascade: {models: [b, sandbox/a], signal: validity}\noutput: {choices: [x, y]}\n")
    assert valid.policy.tasks["default"].cascade == Cascade(("b", "sandbox/a"), "validity")


def test_a_cascade_names_its_own_models(tmp_path: Path) -> None:
    """Two lists would contradict each other."""
    cascade = "{models: [b, judge], signal: logprob, threshold: 1}"
    text = BASE.replace('prompt: "{{ text }}"\n', "") + f"tasks: {{t: {{models: [b], cascade: {cascade}}}}}\n"
    (tmp_path / "job.yaml").write_text(text.replace("messages.csv", "messages.jsonl"))
    with pytest.raises(SpecError, match="stands beside `models`"):
        spec.load(tmp_path / "job.yaml")


MISTAKES = {
    "a cascade of one": (
        "cascade: {models: [b], signal: logprob, threshold: 0.9}",
        "cascade.models: name at least two",
    ),
    "no threshold": ("cascade: {models: [b, judge], signal: logprob}", "cascade: say its `threshold:`"),
    "a threshold above one": (
        "cascade: {models: [b, judge], signal: logprob, threshold: 95}",
        "cascade.threshold: a signal lies between 0 and 1",
    ),
    "validity of anything": ("cascade: {models: [b, judge], signal: validity}", "validity needs an `output:`"),
    "agreement with itself": (
        "params: {temperature: 0}\ncascade: {models: [b, judge], signal: agreement, threshold: 0.6}",
        "at temperature 0 answers always agree",
    ),
    "agreement by a seed": (
        "params: {seed: 7}\ncascade: {models: [b, judge], signal: agreement, threshold: 0.6}",
        "with a seed answers always agree; leave params.seed out",
    ),
    "agreement of one": (
        "cascade: {models: [b, judge], signal: agreement, threshold: 0.6, samples: 1}",
        "cascade.samples: expected 2 to 20",
    ),
    "a judge as signal without a judge": (
        "cascade: {models: [b, judge], signal: judge, threshold: 0.6}",
        "cascade.judge: says who judges where `signal: judge` stands",
    ),
    "a judge of another signal": (
        "cascade: {models: [b, judge], signal: logprob, threshold: 0.6, judge: {model: judge, rubric: x}}",
        "cascade.judge: says who judges where `signal: judge` stands",
    ),
    "a signal by pairs": (
        "cascade: {models: [b, judge], signal: judge, threshold: 0.6, "
        "judge: {model: judge, rubric: x, pairwise: true}}",
        "cascade.judge.pairwise: there is no other answer yet",
    ),
    "a signal that nobody gives": (
        "cascade: {models: [b, judge], signal: judge, threshold: 0.6, judge: {model: judge}}",
        "cascade.judge: a judge needs `rubric:`",
    ),
    "a judge without a rubric": ("scorers: [{type: judge, model: judge}]", "a judge needs `rubric:`"),
    "a judge without a model": ("scorers: [{type: judge, rubric: x}]", "a judge needs `model:`"),
    "the bare word": ("scorers: [judge]", "a judge needs `model:`"),
    "an unknown judge": (
        "scorers: [{type: judge, model: juge, rubric: x}]",
        "scorers[0].model: no model `juge`; did you mean `judge`?",
    ),
    "an empty rubric": ("scorers: [{type: judge, model: judge, rubric: ' '}]", "a rubric has 1 to"),
    "a scale of one grade": (
        "scorers: [{type: judge, model: judge, rubric: x, scale: [5, 5]}]",
        "scorers[0].scale: expected the worst and best grade",
    ),
    "a scale and words": (
        "scorers: [{type: judge, model: judge, rubric: x, scale: [1, 5], choices: [a, b]}]",
        "stands beside `scale`",
    ),
    "grades of a pair": (
        "scorers: [{type: judge, model: judge, rubric: x, pairwise: true, scale: [1, 5]}]",
        "says A, B or tie",
    ),
    "asked too often": ("scorers: [{type: judge, model: judge, rubric: x, samples: 100}]", "expected 1 to 9"),
    "a rubric of another scorer": (
        "scorers: [{type: exact, rubric: x}]",
        "scorers[0].rubric: belongs to a scorer of type judge",
    ),
    "a shadow that nothing compares": ("shadow: {models: [b], share: 1}", "shadow: nothing compares the answers"),
    "an unknown shadow": (
        "scorers: [exact]\nshadow: {models: [c], share: 1}",
        "shadow.models[0]: no model `c`",
    ),
    "an unknown version": (
        "scorers: [exact]\nshadow: {models: [b@v3], share: 1}",
        "shadow.models[0]: model b has no version `v3`; known: v1, v2",
    ),
    "a share of nothing": ("scorers: [exact]\nshadow: {models: [b], share: 0}", "a share of 0 shadows nothing"),
    "a share above one": ("scorers: [exact]\nshadow: {models: [b], share: 5}", "expected a share between 0 and 1"),
    "no share": ("scorers: [exact]\nshadow: {models: [b]}", "the field `share` is missing"),
    "a budget for others": ("budgets: [{usd: 1, for: retry}]", "`retry` is not known here"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_at_its_place(mistake: str, tmp_path: Path) -> None:
    """With file, line, field and what would do."""
    text, told = MISTAKES[mistake]
    with pytest.raises(SpecError) as caught:
        job(tmp_path, text)
    assert told in str(caught.value)
    assert "job.yaml:" in str(caught.value)


SPLIT = """\
experiments:
  - {name: wording, arms: [{name: plain, weight: 9}, {name: kind, prompt: "Please: {{ text }}"}, {name: new, version: b@v2}], guardrails: [cost]}
"""  # noqa: E501 - as people write it


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("weight: 9", "weight: 1", False),
        ("Please: {{", "Pretty please: {{", False),
        ("b@v2", "b@v1", False),
        ("model: b-2", "model: b-3", False),
        ("name: kind", "name: kinder", False),
        ("guardrails: [cost]", "unit: item", False),
        ('\nprompt: "{{', '\nprompt: "Do: {{', False),
        ("guardrails: [cost]", "guardrails: [latency]", True),
        ("tiers: {1: [sandbox/a]}", "tiers: {1: [b]}", True),
    ],
)
def test_an_experiment_is_another_one_where_its_arms_or_shares_are(
    tmp_path: Path, before: str, after: str, same: bool
) -> None:
    """Its name stays the one by which people call it."""
    text = BASE + SPLIT
    assert text.count(before) == 1
    made: list[Experiment] = []
    for each in (text, text.replace(before, after)):
        (tmp_path / "job.yaml").write_text(each)
        made += spec.load(tmp_path / "job.yaml").policy.experiments
    one, two = made
    assert one.id == two.id == "job/wording"
    assert (one.key == two.key) == same
    assert one.key.startswith("job/wording@")


def test_an_upgrade_changes_no_fingerprint_of_an_experiment(tmp_path: Path) -> None:
    """As the release before versions of experiments wrote it: else no run that has one could go on."""
    assert job(tmp_path, SPLIT).fingerprint["experiment job/wording"] == "a08acfddad49"


def test_an_arms_ceiling_takes_the_place_of_its_tasks_under_whichever_name(tmp_path: Path) -> None:
    """The lower one of two would be sent: the arm's longer answers would be cut as the others are."""
    text = SPLIT.replace('prompt: "Please: {{ text }}"', "params: {max_completion_tokens: 200, seed: 7}")
    _, kind, _ = job(tmp_path, "params: {max_tokens: 8, temperature: 1}\n" + text).policy.experiments[0].arms
    assert kind.params_json == b'{"temperature":1,"max_completion_tokens":200,"seed":7}'
    assert kind.max_tokens == 200
    text = text.replace("max_completion_tokens: 200, seed: 7", "max_tokens: 20")
    _, kind, _ = job(tmp_path, "params: {max_tokens: 8, temperature: 1}\n" + text).policy.experiments[0].arms
    assert kind.params_json == b'{"max_tokens":20,"temperature":1}', "in the order as ever: it is part of its version"
