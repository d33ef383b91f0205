"""An item comes into its arm when it is read: prompt, parameters and label of the arm, the same when it comes again."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec

from penstock.connectors.base import Raw
from penstock.connectors.reading.intake import InputShape, Intake
from penstock.connectors.reading.replay import ReplayIntake
from penstock.connectors.settings import Row
from penstock.engine.items import Exposure, Item, Position
from penstock.engine.policy import Arm, Experiment, Policy, Prompt, Task

PLAIN, KIND = Prompt("{{ text }}", version="plain"), Prompt("Please: {{ text }}", version="kind")
WARM = Arm("warm", 1.0, prompt=KIND, params_json=b'{"max_tokens":9,"temperature":0.5}', max_tokens=9, temperature=0.5)


def policy(*arms: Arm) -> Policy:
    task = Task("t", prompt=PLAIN, params_json=b'{"max_tokens":5}', max_tokens=5)
    return Policy({"t": task}, default_task="t", experiments=(Experiment("job/e", "t", (Arm("plain"), *arms)),))


def intake(made: Policy, shape: InputShape = "rows", stopped: set[str] | None = None) -> Intake:
    row = Row(attributes={"unit": "{{ who }}"}) if shape == "rows" else Row()
    return Intake("run", shape, row, made, ["opus"], stopped=stopped if stopped is not None else set())


def raw(value: dict[str, Any], position: int) -> Raw:
    return Raw(Position("s", 0, position), "object", json.dumps(value).encode())


def row(n: int, who: str | None = None) -> Raw:
    return raw({"text": f"hello {n}", "who": who or f"u{n}"}, n)


def line(n: int, **body: object) -> Raw:
    messages = [{"role": "user", "content": f"hello {n}"}]
    return raw({"custom_id": f"r{n}", "body": {"messages": messages, **body}}, n)


def items(reads: Any, records: list[Raw]) -> list[Item]:
    made = [reads.item(record, 0.0) for record in records]
    assert all(isinstance(each, Item) for each in made), made
    return made


def test_each_arm_has_its_prompt_and_its_parameters_and_the_record_can_say_so() -> None:
    for each in items(intake(policy(WARM)), [row(n) for n in range(100)]):
        exposure = each.exposure
        assert exposure is not None
        body = msgspec.json.decode(each.request.body_json)
        said = body["messages"][0]["content"]
        if exposure.arm == "warm":
            assert said.startswith("Please: hello")
            assert (body["max_tokens"], body["temperature"], each.request.max_tokens) == (9, 0.5, 9)
            assert exposure.prompt_version == "kind"
        else:
            assert said.startswith("hello")
            assert (body["max_tokens"], each.request.temperature) == (5, None)
            assert exposure.prompt_version == ""
        assert (exposure.experiment, exposure.propensity) == ("job/e", 0.5)


def test_items_of_one_unit_share_an_arm() -> None:
    made = items(intake(policy(WARM)), [row(n, f"u{n % 10}") for n in range(100)])
    arms = {(each.attributes.unit, each.exposure.arm) for each in made if each.exposure is not None}
    assert len(arms) == 10
    assert len({arm for _, arm in arms}) == 2


def test_a_stopped_experiment_takes_no_new_units_in_an_intake_that_goes_on() -> None:
    stopped: set[str] = set()
    reads = intake(policy(WARM), stopped=stopped)
    before = Counter(each.exposure.arm for each in items(reads, [row(n) for n in range(50)]) if each.exposure)
    assert before.keys() == {"plain", "warm"}
    stopped.add("job/e")
    after = items(reads, [row(n) for n in range(50, 100)])
    assert {(each.exposure.experiment, each.exposure.arm) for each in after if each.exposure} == {("", "")}
    assert all(b"Please" not in each.request.body_json for each in after)


def test_a_request_line_takes_an_arms_parameters_but_brings_its_own_messages_and_its_own_pin() -> None:
    hot = Arm("hot", 1.0, params_json=b'{"max_tokens":5,"temperature":1.0}', max_tokens=5, temperature=1.0)
    reads = intake(policy(hot), "openai-batch")
    arms = Counter(
        (each.exposure.arm, each.request.temperature)
        for each in items(reads, [line(n) for n in range(50)])
        if each.exposure
    )
    assert arms.keys() == {("plain", None), ("hot", 1.0)}
    (pinned,) = items(reads, [line(0, model="opus")])
    assert pinned.exposure is None
    assert all(
        each.exposure is None for each in items(intake(policy(WARM), "openai-batch"), [line(n) for n in range(9)])
    )


def test_an_item_that_is_sent_again_comes_into_the_same_arm() -> None:
    made = policy(WARM)
    task = Task("t", prompt=PLAIN)
    made = msgspec.structs.replace(made, tasks={"t": task})
    reads = Intake("run", "rows", Row(), made, [])  # no unit: the item is one by itself
    first = items(reads, [row(n) for n in range(40)])
    again = ReplayIntake(Intake("run~replay-1", "rows", Row(), made, []))
    for each in first:
        letter = {"item_id": each.item_id, "original": each.original.decode(), "generation": 0}
        (back,) = items(again, [raw(letter, 7)])
        assert (back.item_id, back.generation, back.exposure) == (each.item_id, 1, each.exposure)


def test_a_large_item_of_an_arm_that_the_job_has_no_more_goes_where_the_others_go() -> None:
    """It can't be read again: its prompt is what was asked, and the arm's model may be in no catalogue any more."""
    old = policy(Arm("opus", 9.0, model="gone", prompt=KIND))
    large = [raw({"text": "hello", "who": f"u{n}", "more": "x" * 1_100_000}, n) for n in range(8)]
    drawn = [each for each in items(intake(old), large) if each.exposure is not None and each.exposure.model == "gone"]
    assert drawn
    for each in drawn:
        assert intake(old).again(each) == each
        kept = Exposure(prompt_version="kind")
        assert intake(policy(WARM)).again(each) == msgspec.structs.replace(each, exposure=kept)
