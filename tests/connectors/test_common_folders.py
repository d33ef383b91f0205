"""What a run's folders must be on every node of a cluster. Another path stands for another node's disk."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.base import Mark, SinkName
from penstock.connectors.filestore.common import LEFT_S, NAME, lasting, marked, refuse_apart
from penstock.connectors.settings import FilesSink, FilesSource, KafkaSource, S3Sink, SinkSettings
from penstock.engine.errors import Refused, Temporary


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder of a job, as the starting node sees it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "in.jsonl").write_text('{"text": "one"}\n')
    return folder


def sinks(folder: Path) -> Mapping[SinkName, SinkSettings]:
    return {"results": FilesSink(f"{folder}/out/results.jsonl"), "dead_letters": FilesSink(f"{folder}/dead/letters/")}


def at(mark: Mark, here: Path, there: Path) -> Mark:
    """As a node sees it whose disk is `there`."""
    return msgspec.structs.replace(mark, path=mark.path.replace(str(here), str(there)))


def test_folders_that_are_the_same_everywhere_are_proved_and_left_as_they_were(here: Path) -> None:
    with marked(f"{here}/.penstock", FilesSource(f"{here}/*.jsonl"), sinks(here)) as marks:
        refuse_apart(marks)
        assert [mark.what for mark in marks] == ["the state", "the results", "the dead letters", "the input"]
    assert not list(here.rglob(f"{NAME}*"))


@pytest.mark.parametrize("what", ["the state", "the results", "the dead letters", "the input"])
def test_a_node_with_a_disk_of_its_own_is_refused_with_a_word_what_to_do(here: Path, tmp_path: Path, what: str) -> None:
    """Each would have a ledger of its own there, or commit what nobody looks for."""
    with marked(f"{here}/.penstock", FilesSource(f"{here}/*.jsonl"), sinks(here)) as marks:
        seen = tuple(at(mark, here, tmp_path / "there") if mark.what == what else mark for mark in marks)
        with pytest.raises(Refused, match=rf"{what}: on node .*there.* must share it: .*s3://bucket/prefix, or a"):
            refuse_apart(seen)


def test_a_folder_whose_locks_hold_on_one_node_only_is_refused(here: Path, tmp_path: Path) -> None:
    """As on a file system that is shared, but mounted without locks across nodes."""
    with marked(f"{here}/.penstock", KafkaSource(("t",), bootstrap="b:1"), {}) as marks:
        there = tmp_path / "there"
        shutil.copytree(here, there)
        with pytest.raises(Refused, match="locks that keep out no other node"):
            refuse_apart(tuple(at(mark, here, there) for mark in marks))


def test_an_input_of_the_same_name_and_other_content_is_refused(here: Path, tmp_path: Path) -> None:
    with marked("s3://bucket/state", FilesSource(f"{here}/in.jsonl"), {}) as marks:
        (here / "in.jsonl").write_text('{"text": "two"}\n')
        with pytest.raises(Refused, match=r"the input: .* is another file"):
            refuse_apart(marks)


def test_an_input_is_looked_at_when_the_run_starts_and_may_be_moved_away_later(here: Path) -> None:
    """A lane that is lost after that opens elsewhere all the same."""
    with marked(f"{here}/.penstock", FilesSource(f"{here}/in.jsonl"), sinks(here)) as marks:
        (here / "in.jsonl").unlink()
        refuse_apart(lasting(marks))
        assert len(lasting(marks)) == len(marks) - 1


def test_what_every_node_reaches_anyway_needs_no_proof() -> None:
    with marked(
        "s3://bucket/state", KafkaSource(("t",), bootstrap="b:1"), {"results": S3Sink("bucket", "out/")}
    ) as marks:
        assert marks == ()


def test_a_disk_that_is_full_is_no_refusal(here: Path) -> None:
    """It is the machine's fault, and mended by making room. (A limit on the size of files stands for it.)"""
    source, before = KafkaSource(("t",), bootstrap="b:1"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(Temporary, match=r"the state: .* Free space"), marked(str(here), source, {}):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(here.glob(".*"))


def test_marks_that_a_killed_command_left_go_in_time_and_those_of_others_stay(here: Path) -> None:
    old = here / f"{NAME}old"
    old.touch()
    os.utime(old, (0, time.time() - 2 * LEFT_S))
    with marked(str(here), KafkaSource(("t",), bootstrap="b:1"), {}) as theirs:
        os.utime(theirs[0].path, (0, time.time() - 2 * LEFT_S))
        with marked(str(here), KafkaSource(("t",), bootstrap="b:1"), {}):
            refuse_apart(theirs)
            assert not old.exists()
