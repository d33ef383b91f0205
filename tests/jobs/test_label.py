"""`penstock label`: people at a real terminal; no label is lost; agreement; another tool by files."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from penstock.connectors.audit import open_audit
from penstock.connectors.calibrations import read_judges
from penstock.connectors.state import open_state
from penstock.engine.errors import SpecError
from penstock.engine.review import Review
from penstock.jobs import rollouts
from penstock.jobs import spec as job_spec
from penstock.jobs.cli import call
from penstock.jobs.history import open_history
from penstock.jobs.look.reading import Outputs
from penstock.jobs.people import review
from penstock.jobs.people.desk import Desk
from penstock.jobs.people.labels import Label, Labels, gold
from penstock.jobs.people.review import Asked, Other
from penstock.jobs.people.terminal import screen
from penstock.workers.status import RunStatus

JOB = """\
name: looked-at
source: rows.jsonl
tasks:
  topic: {prompt: "{{ text }}", output: {choices: [billing, delivery, other]}}
models: [sandbox/a]
sinks: out.jsonl
review: {share: 1}
"""
CHOICES = ("billing", "delivery", "other")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def result(n: int, answer: str, **more: Any) -> dict[str, Any]:
    block = {"item_id": f"item-{n}", "task": "topic", "model": "small", "model_version": "v1", "status": "ok", **more}
    return {"text": f"Message number {n}", "answer": answer, "penstock": block}


def sample(n: int, score: float, output: str, model: str = "small", **more: Any) -> dict[str, Any]:
    message = {"messages": [{"role": "system", "content": "Sort."}, {"role": "user", "content": f"The message {n}"}]}
    told = {"item_id": f"item-{n}", "score": score, "passed": score >= 0.5, "output": output, "input": message}
    return {**told, "model": model, "model_version": "v1", "scorer": "exact", "expected": "other", **more}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with five results, and that is where we stand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    answers = ["billing", "delivery", "other", "delivery", "nonsense"]
    made = [result(n, answer) for n, answer in enumerate(answers)]
    made[4]["penstock"]["status"] = "invalid_output"
    write(tmp_path / "out.jsonl", made)
    write(
        tmp_path / "quality.jsonl",
        [
            sample(0, 1.0, "billing"),
            sample(1, 0.3, "delivery", judge_model="opus", scorer="judge"),
            sample(2, 1.0, "other"),
            sample(2, 0.0, "billing", "large"),
            sample(3, 1.0, "delivery"),
            sample(3, 1.0, "Delivery", "large"),
        ],
    )
    save(tmp_path)
    return tmp_path


def save(folder: Path) -> None:
    spec = job_spec.load("job.yaml")
    history = open_history(spec.state)
    history.save_spec(spec)
    outputs = {"results": [str(folder / "out.jsonl")], "quality": [str(folder / "quality.jsonl")]}
    history.save_status(RunStatus(spec.run_id, "looked-at", "done", outputs=outputs))


def chosen(rules: Review | None) -> dict[str, tuple[str, ...]]:
    spec = job_spec.load("job.yaml")
    listed = review.listed(Outputs(spec, open_history(spec.state).status(spec.run_id)), rules)
    return {item.item_id: item.why for item in listed.items}


def test_rules_choose_what_people_see_and_say_why(folder: Path) -> None:
    """Each rule by itself, all together, and without rules everything."""
    assert chosen(Review(invalid=True)) == {"item-4": ("invalid output",)}
    assert chosen(Review(low_confidence=0.5)) == {"item-1": ("low confidence",)}
    assert chosen(Review(disagreement=True)) == {"item-2": ("disagreement",)}
    assert len(chosen(None)) == 5
    assert set(chosen(Review(share=0.5))) <= set(chosen(None))
    assert chosen(Review(invalid=True, low_confidence=0.5)) == {
        "item-1": ("low confidence",),
        "item-4": ("invalid output",),
    }


def test_an_answer_that_its_cascade_was_not_sure_of_is_one_of_low_confidence(folder: Path) -> None:
    """Its score says nothing of that: nobody may know the right answer."""
    signals = [sample(0, 1.0, "billing", signal=0.55), sample(1, 1.0, "delivery", signal=0.9)]
    write(folder / "quality.jsonl", [*signals, sample(2, 1.0, "other", "large", signal=0.1)])
    assert chosen(Review(low_confidence=0.6)) == {"item-0": ("low confidence",)}


def test_a_label_knows_what_was_asked(folder: Path) -> None:
    """So it counts for the same question in another run: one that is said here, noted, and one from a file."""
    write(folder / "out.jsonl", [result(n, "billing", input_hash=f"hash-{n}") for n in range(3)])
    listed = review.listed(
        Outputs(spec := job_spec.load("job.yaml"), open_history(spec.state).status(spec.run_id)), None
    )
    labels: list[Label] = []
    desk = Desk(listed.items, [], "ann", labels.append, lambda: "now")
    desk.press("1")
    desk.press("b")
    desk.note("sure")
    assert [(label.item_id, label.note, label.request) for label in labels] == [
        ("item-0", "", "hash-0"),
        ("item-0", "sure", "hash-0"),
    ]
    assert bring([Label("item-1", "ben", "now", "other")]) == 0
    assert log_of(folder).said()["item-1", "ben"].request == "hash-1"


def test_a_grade_speaks_of_the_answer_that_was_graded_and_of_no_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After --fresh the items have the same ids and other answers: they are open again, old words stay apart."""
    free = JOB.replace(", output: {choices: [billing, delivery, other]}", "")
    (folder / "job.yaml").write_text(free)
    save(folder)

    def answered(text: str) -> list[Asked]:
        write(folder / "out.jsonl", [result(n, text, output_hash=f"hash of {text}") for n in range(3)])
        made = [sample(n, 1.0, text, judge_model="opus", scorer="judge") for n in range(3)]
        write(folder / "quality.jsonl", [{**each, "scorer_version": "abc"} for each in made])
        outputs = Outputs(spec := job_spec.load("job.yaml"), open_history(spec.state).status(spec.run_id))
        return list(review.listed(outputs, None).items)

    desk = Desk(answered("old"), [], "ann", lambda label: log_of(folder).add([label]), lambda: "now")
    for key in "xxx":
        desk.press(key)
    assert bring([Label("item-0", "tool", "now", score=1.0)]) == 0
    assert call(["label", "export", "job.yaml", "old.csv"]) == 0
    assert Desk(answered("new"), log_of(folder).history(), "ann", print, str).done == 0
    assert call(["label", "import", "job.yaml", "old.csv"]) == 0
    capsys.readouterr()
    assert call(["label", "show", "job.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["labelled"], told["models"][0]["right"], told["grades"]) == (1, 1.0, {"earlier": 3, "unplaced": 1})
    assert call(["label", "calibrate", "job.yaml"]) == 0
    assert "3 grades of earlier answers" in capsys.readouterr().out
    (found,) = read_judges(open_state(job_spec.load("job.yaml").state)).values()
    assert (found.right, found.wrong) == (1, 0)


def test_what_a_wall_redacts_no_person_sees(folder: Path) -> None:
    """Where a wall of the job says so, inputs come from quality samples alone; the rest is counted."""
    (folder / "job.yaml").write_text(JOB + "walls: {health: {sample: redact}, public: {}}\n")
    save(folder)
    spec = job_spec.load("job.yaml")
    listed = review.listed(Outputs(spec, open_history(spec.state).status(spec.run_id)), None)
    assert [item.item_id for item in listed.items] == ["item-0", "item-1", "item-2", "item-3"]
    assert listed.unshown == 1
    assert listed.items[0].input == "[system] Sort.\n\nThe message 0"
    assert listed.items[2].others[0].answer == "billing"


# ---- the terminal


class Terminal:
    """A command behind a real pseudo terminal."""

    def __init__(self, *argv: str) -> None:
        self.master, slave = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        command = [sys.executable, "-m", "penstock.jobs.cli", *argv]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str, timeout_s: float = 30.0) -> str:
        """Read until it was shown since the last call; what was shown before is forgotten."""
        end = time.monotonic() + timeout_s
        while not re.search(pattern, self.seen, re.DOTALL):
            assert time.monotonic() < end, f"never saw {pattern!r} in {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += _plain(os.read(self.master, 65536).decode(errors="replace"))
                except OSError:  # the other side has left
                    break
        shown, self.seen = self.seen, ""
        assert re.search(pattern, shown, re.DOTALL), shown
        return shown

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def leave(self) -> int:
        self.press("q")
        self.until("the same command goes on")
        return self.process.wait(timeout=20)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@contextmanager
def terminal(*argv: str) -> Generator[Terminal]:
    made = Terminal(*argv)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        os.close(made.master)


def log_of(folder: Path) -> Labels:
    return Labels(open_state(str(folder / ".penstock")), job_spec.load(folder / "job.yaml").run_id)


def said(folder: Path, by: str = "ann") -> dict[str, str]:
    labels = log_of(folder).said()
    return {item: label.says for (item, who), label in labels.items() if who == by}


def test_a_person_labels_goes_back_undoes_notes_and_goes_on_later(folder: Path) -> None:
    """Every key; what was said before is shown again; the audit log knows."""
    with terminal("label", "job.yaml", "--by", "ann") as at:
        shown = at.until("1 of 5.*quit")
        assert "The message 0" in shown
        assert "billing  (small)" in shown
        assert "because of random share" in shown
        at.press("1")
        at.until("2 of 5")
        at.press("thard to say\n")
        at.until("note: hard to say.*2 of 5.*note: hard to say.*quit")
        at.press("tforget\x1b")
        at.until("note: forget.*2 of 5.*note: hard to say.*quit")
        at.press("2")
        at.until("3 of 5")
        at.press("u")
        at.until("2 of 5")
        at.press("3")
        at.until("3 of 5")
        at.press("\x1b[D")
        at.until("2 of 5.*you said: other.*note: hard to say")
        at.press("zn")
        at.until("3 of 5")
        assert at.leave() == 0
    assert said(folder) == {"item-0": "billing", "item-1": "other"}
    with terminal("label", "job.yaml", "--by", "ann", "--blind") as at:
        shown = at.until("3 of 5.*2 labelled by ann.*quit")
        assert "(small)" not in shown
        at.press("333")
        at.until("5 of 5.*5 labelled by ann")
        at.press("\x03")
        at.until("5 of 5 labelled by ann")
        assert at.process.wait(timeout=20) == 0
    assert len(said(folder)) == 5
    facts = [json.loads(bytes(e.facts)) for e in open_audit(str(folder / ".penstock")).entries() if e.kind == "label"]
    assert [fact["labels"] for fact in facts] == [4, 3]  # with the one that was taken back, and its taking back


def test_no_label_is_lost_when_the_command_is_killed(folder: Path) -> None:
    """What the person saw accepted stands after `kill -9`, and the next sitting goes on behind it."""
    with terminal("label", "job.yaml", "--by", "ann") as at:
        for n in range(1, 4):
            at.until(f"{n} of 5.*quit")
            at.press("1")
        at.until("4 of 5.*3 labelled")
        at.process.send_signal(signal.SIGKILL)
        at.process.wait(timeout=20)
    assert said(folder) == dict.fromkeys(("item-0", "item-1", "item-2"), "billing")
    with terminal("label", "job.yaml", "--by", "ann") as at:
        at.until("4 of 5.*3 labelled by ann")
        assert at.leave() == 0


def test_without_a_terminal_it_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a traceback, and not a command that waits for ever."""
    assert call(["label", "job.yaml"]) == 2
    assert "import" in capsys.readouterr().err


# ---- between people, and other tools


def put(folder: Path, by: str, labels: dict[int, str]) -> None:
    log_of(folder).add([Label(f"item-{n}", by, "2026-11-24T12:00:00.000Z", label) for n, label in labels.items()])


def test_agreement_is_told_between_people_and_with_the_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And how often models are right by them."""
    put(folder, "ann", {0: "billing", 1: "other", 2: "other", 3: "delivery"})
    put(folder, "ben", {0: "billing", 1: "delivery", 2: "other", 3: "delivery"})
    assert gold(log_of(folder).said()) == {"item-0": "billing", "item-2": "other", "item-3": "delivery"}
    put(folder, "cem", {1: "other"})
    assert call(["label", "show", "job.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labelled"] == 4
    assert told["pairs"][0]["agreement"]["rate"]["mean"] == 0.75
    assert told["judges"][0]["agreement"]["items"] == 1  # most say that it is wrong
    assert (told["models"][0]["items"], told["models"][0]["right"]) == (4, pytest.approx((3 + 1 / 3) / 4))
    assert call(["label", "show", "job.yaml"]) == 0
    assert "4 of 5 items labelled (ann 4, ben 4, cem 1)" in capsys.readouterr().out


def judged_run(folder: Path, wrong: int, noticed: int) -> None:
    """A hundred answers, of which ann calls so many wrong, and the judge notices so many of these."""
    write(folder / "out.jsonl", [result(n, "billing") for n in range(100)])
    made = [sample(n, float(n >= noticed), "billing", judge_model="opus", scorer="judge") for n in range(100)]
    made += [sample(n, 1.0, "billing", judge_model="opus", scorer="judge pairwise") for n in range(100)]
    write(folder / "quality.jsonl", [{**each, "scorer_version": "abc"} for each in made])
    put(folder, "ann", {n: "other" if n < wrong else "billing" for n in range(100)})
    put(folder, "ben", {n: "other" for n in range(2)})  # the same says of some: an answer counts once


@pytest.mark.parametrize(
    ("noticed", "verdict"), [(28, "yes"), (10, "opus informs only: the lower end of its kappa is 0.23")]
)
def test_a_judge_is_held_against_labels_and_may_decide_where_it_agrees_with_people(
    folder: Path, capsys: pytest.CaptureFixture[str], noticed: int, verdict: str
) -> None:
    judged_run(folder, 30, noticed)
    assert call(["label", "calibrate", "job.yaml"]) == 0
    assert verdict in " ".join(capsys.readouterr().out.split())
    state = job_spec.load("job.yaml").state
    (found,) = read_judges(open_state(state)).values()  # the judge of pairs is not among them
    assert (found.scorer, found.model, found.right, found.wrong) == ("judge@abc", "opus", 70, 30)
    assert (rollouts.judges(state) == {"judge@abc"}) == (noticed == 28)
    last = list(open_audit(state).entries())[-1]
    assert last.kind == "label"
    assert b'"judge@abc"' in bytes(last.facts)


def test_a_judge_nobody_labelled_can_not_be_calibrated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["label", "calibrate", "job.yaml"]) != 0
    assert "no judge scored an answer that people labelled" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.csv", "out-labels.jsonl"])
def test_another_tool_gets_the_items_and_its_labels_come_back_once(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Open lines, filled lines, wrong lines; an existing file is not overwritten."""
    put(folder, "ann", {0: "billing"})
    assert call(["label", "export", "job.yaml", name]) == 0
    assert call(["label", "export", "job.yaml", name]) == 2
    lines = read(folder / name)
    assert [line["label"] or None for line in lines] == ["billing", None, None, None, None]
    assert lines[0]["input"] == "[system] Sort.\n\nThe message 0"
    lines[1] |= {"label": "other", "by": "ben"}
    lines[2] |= {"score": 0.25}
    lines[3] |= {"score": 7}
    rewrite(folder / name, lines)
    assert call(["label", "import", "job.yaml", name, "--by", "tool"]) == 5
    out = capsys.readouterr()
    assert "2 new labels; 1 known already; 1 lines without one" in out.out
    assert "line 4: a score lies between 0 and 1" in out.err
    assert said(folder, "ben") == {"item-1": "other"}
    assert said(folder, "tool") == {"item-2": "0.25"}
    call(["label", "import", "job.yaml", name, "--by", "tool"])
    assert "0 new labels" in capsys.readouterr().out


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            out = csv.DictWriter(file, lines[0].keys())
            out.writeheader()
            out.writerows(lines)
    else:
        write(path, lines)


def bring(labels: list[Label], name: str = "back.jsonl") -> int:
    """What another tool sends back."""
    write(Path(name), [msgspec.to_builtins(label) for label in labels])
    return call(["label", "import", "job.yaml", name, "--by", "tool"])


def test_an_import_changes_what_stands_whatever_was_said_before(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taken back, or changed since: the same word again counts. The export made then, brought in now, does not."""
    first = Label("item-0", "ann", "2026-11-24T12:00:00.000Z", "other")
    taken_back = Label("item-0", "ann", "2026-11-24T12:01:00.000Z", withdrawn=True)
    log_of(folder).add([first, taken_back])
    put(folder, "ben", {0: "other"})
    log_of(folder).add([Label("item-0", "ben", "2026-11-24T12:05:00.000Z", "billing")])
    assert bring([first, Label("item-0", "ben", "2026-11-24T12:00:00.000Z", "other")]) == 0
    assert "0 new labels; 2 known already" in capsys.readouterr().out
    assert (said(folder), said(folder, "ben")) == ({}, {"item-0": "billing"})
    again = [Label("item-0", by, "2026-11-25T08:00:00.000Z", "other") for by in ("ann", "ben")]
    assert bring(again) == 0
    assert "2 new labels" in capsys.readouterr().out
    assert (said(folder), said(folder, "ben")) == ({"item-0": "other"}, {"item-0": "other"})
    assert bring(again) == 0
    assert "0 new labels; 2 known already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["out.csv", "out-labels.jsonl"])
def test_an_export_comes_back_whatever_ends_lines_elsewhere(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Unicode knows six more characters that end a line; JSON lines know one."""
    log_of(folder).add([Label("item-0", "ann", "2026-11-24T12:00:00.000Z", "billing", note="a\u2028b\x85c\x0bd\x1ce")])
    assert call(["label", "export", "job.yaml", name]) == 0
    assert call(["label", "import", "job.yaml", name]) == 0
    assert "0 new labels; 1 known already; 4 lines without one" in capsys.readouterr().out


def test_a_label_from_a_file_is_one_of_the_choices_however_it_is_spelled(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo would become what is right."""
    labels = [Label(f"item-{n}", "ben", "now", word) for n, word in enumerate((" Billing ", "biling"))]
    assert bring(labels) == 5
    assert said(folder, "ben") == {"item-0": "billing"}
    wrong = "the label 'biling' is none of the choices: billing, delivery, other"
    assert wrong in " ".join(capsys.readouterr().err.split())


def test_people_agree_who_say_the_same_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the scorer `exact` compares; the right answer is spelled as most of them do."""
    for by, word in (("ann", "Billing "), ("ben", "billing"), ("cem", "billing"), ("dan", "other"), ("eve", "other")):
        put(folder, by, {0: word})
    assert gold(log_of(folder).said()) == {"item-0": "billing"}
    assert call(["label", "show", "job.yaml", "--json"]) == 0
    pairs = {(p["first"], p["second"]): p["agreement"]["rate"] for p in json.loads(capsys.readouterr().out)["pairs"]}
    assert (pairs["ann", "ben"]["mean"], pairs["ann", "dan"]["mean"]) == (1.0, 0.0)


def test_rows_of_a_file_are_labelled_without_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To make a set with true answers: known by their content, so the file may be sorted anew."""
    write(folder / "fresh.jsonl", [{"text": "a", "n": 1}, {"text": "b", "n": 2}])
    with terminal("label", "fresh.jsonl", "--choices", "yes,no", "--by", "ann") as at:
        at.until("1 of 2.*text: a.*quit")
        at.press("1")
        at.until("2 of 2")
        assert at.leave() == 0
    write(folder / "fresh.jsonl", [{"text": "b", "n": 2}, {"text": "a", "n": 1}])
    assert call(["label", "export", "fresh.jsonl", "done.jsonl", "--choices", "yes,no"]) == 0
    assert [line["label"] for line in read(folder / "done.jsonl")] == [None, "yes"]


def test_an_item_cannot_write_the_screen_of_whoever_labels_it() -> None:
    """Who sends a row must not choose what is read beside it, nor clear it away."""
    screen_of = Console(file=io.StringIO(), width=60, height=30, no_color=True)
    other = Other("m@1", "no\x1b[1;1H")
    item = Asked("a", "t", (), "parcel\x1b[2J\nlate\x07", "del\x9b2Jay", choices=("yes", "no"), others=(other,))
    screen_of.print(screen(Desk([item], [], "ann", print, lambda: ""), screen_of, blind=False))
    shown = screen_of.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(word in shown for word in ("parcel [2J", "late", "del 2Jay", "no [1;1H"))
    assert not any(c in shown for c in "\x1b\x07\x9b")


def test_keys_never_meet_commands_and_too_many_choices_are_said() -> None:
    """Thirty choices have keys of their own; more need another tool."""
    item = Asked("a", "t", (), "text", "", choices=tuple(map(str, range(29))))
    labels: list[Label] = []
    desk = Desk([item], [], "ann", labels.append, lambda: "now")
    keys = desk.keys()
    assert len(keys) == 29
    assert not set(keys) & set("nbutq ")
    with pytest.raises(SpecError):
        Desk([msgspec.structs.replace(item, choices=tuple(map(str, range(40))))], [], "ann", labels.append, lambda: "")
    with pytest.raises(SpecError):
        Desk([], [], "ann", labels.append, lambda: "")
