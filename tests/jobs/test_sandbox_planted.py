"""Planted quality: models that are right as often as they were told, the same in every run, and worse on command."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.engine import signals
from penstock.engine.errors import SpecError
from penstock.engine.items import OutputSpec
from penstock.jobs.cli import call
from penstock.jobs.sandbox import Behaviour, Settings, read_settings, running_sandbox
from penstock.jobs.sandbox.answers import Ask, Message
from penstock.jobs.sandbox.behaving import Behaviours
from penstock.jobs.sandbox.cases import CHOICES, Book, Truth, rows
from penstock.jobs.sandbox.planted import Drift, Planted, is_right, planted_answer, true_record
from penstock.workers.checking import answers

ROWS = list(rows(2_000))


def ask(row: dict[str, Any], model: str = "m", prompt: str = "Which one?", **more: Any) -> Ask:
    text = f"{prompt} {row['text']}\n\n{answers.choices_instruction(CHOICES)}"
    return Ask([Message("user", text)], model=model, **more)


def scores(planted: Planted, model: str = "m", prompt: str = "Which one?", seed: int = 0) -> list[bool]:
    """By the labels of the rows, as an evaluation would score them."""
    book, told = Book(), list[bool]()
    for served, row in enumerate(ROWS):
        asked = ask(row, model, prompt)
        known = book.find(asked.messages[0].content)  # pyright: ignore[reportArgumentType]
        assert known is not None
        said = planted_answer(asked, known, is_right(asked, known, planted, served, seed))
        assert said in CHOICES
        told.append(said == row["label"])
    return told


def share(told: list[bool]) -> float:
    return sum(told) / len(told)


def test_a_model_is_right_as_often_as_was_planted_whatever_the_prompt_around_the_row() -> None:
    """Within four standard errors of 2,000 rows; and a run that repeats is the same run."""
    for quality in (0.0, 0.6, 0.85, 1.0):
        for prompt in ("Which one?", "You are a clerk. Think.\nText:"):
            assert share(scores(Planted(quality), prompt=prompt)) == pytest.approx(quality, abs=0.044)
    assert scores(Planted(0.7)) == scores(Planted(0.7)) != scores(Planted(0.7), seed=1)


def test_hard_rows_are_hard_for_all_models() -> None:
    """Two models of one quality differ on half as many rows as they would by themselves; with common luck on none."""
    a, b = scores(Planted(0.8), "a"), scores(Planted(0.8), "b")
    assert share([x != y for x, y in zip(a, b, strict=True)]) == pytest.approx(0.5 * 2 * 0.8 * 0.2, abs=0.04)
    same = Planted(0.8, common=1.0)
    assert scores(same, "a") == scores(same, "b")


def test_words_of_the_request_and_tasks_have_a_quality_of_their_own() -> None:
    """A better prompt, a channel that is harder, a task that the model can't do."""
    planted = Planted(0.7, words={"step by step": 0.2, "By phone": -0.4})
    told = scores(planted)
    by_phone = [ok for ok, row in zip(told, ROWS, strict=True) if row["channel"] == "phone"]
    assert share(by_phone) == pytest.approx(0.3, abs=0.08)
    assert share(scores(planted, prompt="Think step by step.")) > share(told) + 0.1
    assert share(scores(Planted(0.9, tasks={"messages": 0.2}))) == pytest.approx(0.2, abs=0.044)


def test_quality_drifts_by_the_count_of_answers() -> None:
    """At once, or in a straight line; never below zero or above one."""
    told = scores(Planted(0.9, drift=(Drift(1_000, -0.5),)))
    assert share(told[:1_000]) == pytest.approx(0.9, abs=0.06)
    assert share(told[1_000:]) == pytest.approx(0.4, abs=0.08)
    slow = Planted(0.9, drift=(Drift(100, -0.4, over=100), Drift(500, -2.0)))
    assert [round(slow.chance("", "", n), 3) for n in (99, 149, 199, 300, 500)] == [0.9, 0.7, 0.5, 0.5, 0.0]


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b", "c"]}, "n": {"type": "integer", "minimum": 0, "maximum": 50}},
    "required": ["kind", "n"],
}


def test_wrong_answers_have_the_form_that_was_asked_for() -> None:
    """An instance of the schema, a number: other than the true one."""
    form = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    for row in ROWS[:50]:
        asked = Ask([Message("user", row["text"])], response_format=form)
        known = Book().find(row["text"])
        assert known is not None
        right, wrong = (planted_answer(asked, known, ok) for ok in (True, False))
        assert json.loads(right) == true_record(row["text"], SCHEMA) != json.loads(wrong)
        assert answers.check(wrong, OutputSpec(json_schema=msgspec.json.encode(SCHEMA)))[0]
        plain = Ask([Message("user", row["text"])])
        assert planted_answer(plain, known, True) == str(row["number"]) != planted_answer(plain, known, False)


def test_labelled_rows_of_ones_own_are_known_too(tmp_path: Path) -> None:
    """By the row's text, wherever it stands in the prompt, however it is wrapped; a row without a label is not."""
    lines = [
        {"body": "The kettle\n leaks again and again, says my aunt in Bern.", "topic": "product"},
        {
            "body": "The kettle\n leaks again and again, says my aunt in Bern. And the bill is wrong.",
            "topic": "billing",
        },
        {"body": "No label here at all"},
        {"body": "Brief one", "topic": "other"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    book = Book(Truth(str(path), "body", "topic"))
    labels = [found.label if (found := book.find(f"Say which:  {row['body']} Thanks")) else None for row in lines]
    assert labels == ["product", "billing", None, "other"]
    path.write_text("{")
    with pytest.raises(SpecError):
        Book(Truth(str(path)))


def post(url: str, path: str, body: object, key: str = "t") -> Any:
    request = urllib.request.Request(url + path, msgspec.json.encode(body), {"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def answer_of(url: str, row: dict[str, Any], model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": ask(row).messages[0].content}]}
    return post(url, "/v1/chat/completions", body)["choices"][0]["message"]["content"]


def test_a_served_model_is_worse_on_command_and_the_count_of_right_answers_is_told() -> None:
    """By the sandbox's key alone; what is no behaviour changes nothing; a model's name may carry its quality."""
    with running_sandbox(Settings(token="t")) as url:
        for row in ROWS[:20]:
            assert answer_of(url, row, "planted:1.0:v2") == row["label"]
        changed = post(url, "/behaviour?model=planted:1.0:v2", {"planted": {"quality": 0.0}, "latency_ms": 1})
        assert changed["planted"]["quality"] == 0.0
        for row in ROWS[:20]:
            assert answer_of(url, row, "planted:1.0:v2") != row["label"]
        for path, body, key in (
            ("/behaviour?model=x", {"planted": {"quality": 2}}, "t"),
            ("/behaviour?model=x", {"speed": 1}, "t"),
            ("/behaviour", {}, "t"),
            ("/behaviour?model=x", {}, "stranger"),
        ):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(url, path, body, key)
            caught.value.close()
        with urllib.request.urlopen(f"{url}/stats") as response:
            told = json.load(response)["models"]["planted:1.0:v2"]
    assert (told["known"], told["right"], told["calls"]) == (40, 20, 40)


def test_a_model_that_is_asked_tells_how_sure_it_is_and_is_surer_of_what_is_right() -> None:
    """As a chat completion has it: each token with its probability. Nobody else is told."""
    told: dict[bool, list[float]] = {True: [], False: []}
    with running_sandbox(Settings(token="t")) as url:
        for row in ROWS:
            messages = [{"role": "user", "content": ask(row).messages[0].content}]
            body = {"model": "planted:0.5", "messages": messages, "logprobs": True, "top_logprobs": 2}
            reply = post(url, "/v1/chat/completions", body)
            signal = signals.of_tokens("logprob", msgspec.json.encode(reply))
            assert signal is not None
            lead = signals.of_tokens("margin", msgspec.json.encode(reply))
            assert lead == pytest.approx(2 * signal - 1, abs=1e-6)
            told[reply["choices"][0]["message"]["content"] == row["label"]].append(signal)
        plain = post(url, "/v1/chat/completions", {"model": "planted:0.5", "messages": messages})
    assert plain["choices"][0]["logprobs"] is None
    right, wrong = (sum(each) / len(each) for each in told.values())
    assert right > wrong + 0.2


def test_a_command_changes_what_it_names_and_leaves_the_rest() -> None:
    """Faults told earlier stay when the quality changes."""
    behaviours = Behaviours(Settings(models={"v2": Behaviour(latency_ms=5, planted=Planted(0.9, common=0.2))}))
    behaviours.change("v2", b'{"faults": {"refuse": 0.1}}')
    behaviours.change("v2", b'{"planted": {"quality": 0.5}}')
    now = behaviours.of("v2")
    assert (now.latency_ms, now.faults.refuse, now.planted) == (5, 0.1, Planted(0.5, common=0.2))
    assert behaviours.of("v1") == Behaviour()


def test_rows_are_made_by_a_command_and_settings_are_read(tmp_path: Path) -> None:
    """The same seed makes the same file; a schema adds the true object."""
    out, schema = tmp_path / "rows.jsonl", tmp_path / "schema.json"
    schema.write_bytes(msgspec.json.encode(SCHEMA))
    argv = ["sandbox", "rows", "30", "-o", str(out), "--choices", "yes,no", "--task", "spam", "--schema", str(schema)]
    assert call(argv) == 0
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(made) == len({row["text"] for row in made}) == 30
    assert {row["label"] for row in made} == {"yes", "no"}
    assert all(row["record"] == true_record(row["text"], SCHEMA) for row in made)
    first = out.read_bytes()
    assert call(argv) == 0
    assert out.read_bytes() == first
    assert call([*argv, "--task", "No Good"]) == 2
    (tmp_path / "s.yaml").write_text(
        "models: {small-v2: {planted: {quality: 0.8, tasks: {spam: 0.5}, drift: [{after: 9, by: -0.1}]}}}\n"
        "truth: {path: rows.jsonl, label: topic}\n"
    )
    planted = read_settings(tmp_path / "s.yaml").of("small-v2").planted
    assert planted == Planted(0.8, tasks={"spam": 0.5}, drift=(Drift(9, -0.1),))
    (tmp_path / "s.yaml").write_text("default: {planted: {quality: 85}}\n")
    with pytest.raises(SpecError):
        read_settings(tmp_path / "s.yaml")
