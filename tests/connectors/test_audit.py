"""The audit log on a state: many writers, crashes at any point, and every tampering found where it is."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.connectors.audit import HEAD, PER_SEGMENT, AuditLog, actor_of, open_audit, verify_lines
from penstock.connectors.base import Holder
from penstock.connectors.state import Absent, FolderState, State, Tag, open_state
from penstock.engine.audit import Draft, Head, Kept, lines_in
from penstock.engine.errors import Corrupt, Temporary


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A state of each kind."""
    if request.param == "folder":
        return str(tmp_path)
    request.getfixturevalue("s3_keys")
    bucket = request.getfixturevalue("new_bucket")("audit")
    return f"s3://{bucket}/team/a?endpoint={request.getfixturevalue('s3_server').endpoint}"


def drafts(count: int, run: str = "r") -> list[Draft]:
    return [Draft(1.0 + number, "ann@host/penstock run", "label", "job", run, {"n": number}) for number in range(count)]


def fault(log: AuditLog, kept: Kept | None = None) -> tuple[str, int, str]:
    broken = log.verify(kept).broken
    assert broken is not None
    return broken.fault, broken.seq, broken.place


def test_what_was_appended_is_there_in_order_and_holds(url: str) -> None:
    """An empty log holds; so does one of several segments."""
    log = open_audit(url)
    assert log.verify().entries == 0
    for one in drafts(3):
        log.append(one)
    head = log.append(*drafts(8, "other"))
    assert [(entry.seq, entry.run) for entry in log.entries()] == [
        *((n, "r") for n in range(1, 4)),
        *((n, "other") for n in range(4, 12)),
    ]
    assert log.verify(Kept(11, head.hash)).broken is None


def test_of_ten_processes_that_write_at_once_no_entry_is_lost(tmp_path: Path) -> None:
    """Each finds all of its own, in its order, in one chain; whoever verifies meanwhile is told of no tampering."""
    code = (
        "import sys; from penstock.connectors.audit import open_audit; from penstock.engine.audit import Draft\n"
        "log = open_audit(sys.argv[1])\n"
        "for n in range(15):\n"
        "    log.append(*[Draft(1.0, 'a', 'label', 'j', sys.argv[2], {'n': 2 * n + i}) for i in range(2)])\n"
    )
    url = str(tmp_path)
    others = [subprocess.Popen([sys.executable, "-c", code, url, f"r{n}"]) for n in range(10)]
    log = open_audit(url)
    while any(process.poll() is None for process in others):
        assert log.verify().broken is None
    assert [process.returncode for process in others] == [0] * 10
    found = log.verify()
    assert (found.entries, found.broken) == (300, None)
    for n in range(10):
        own = [bytes(entry.facts) for entry in log.entries() if entry.run == f"r{n}"]
        assert own == [b'{"n":%d}' % number for number in range(30)]


@pytest.mark.s3
def test_several_writers_on_s3_lose_no_entry(
    s3_keys: None, new_bucket: Callable[[str], str], s3_server: object
) -> None:
    """Conditional puts stand in for locks."""
    url = f"s3://{new_bucket('audit')}/a?endpoint={getattr(s3_server, 'endpoint', '')}"

    def write(n: int) -> None:
        for one in drafts(5, f"r{n}"):
            open_audit(url).append(one)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(write, range(5)))
    found = open_audit(url).verify()
    assert (found.entries, found.broken) == (25, None)


class _Died(Exception):
    """The process ended here."""


class Dying:
    """A state whose writer dies at its n-th put: before it, or after it was written."""

    def __init__(self, state: State, at: int, written: bool) -> None:
        self._state = state
        self._left = at
        self._written = written

    def get(self, key: str) -> tuple[bytes, Tag] | None:
        return self._state.get(key)

    def list(self, prefix: str) -> list[str]:
        return self._state.list(prefix)

    def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
        if self._left == 0 and not self._written:
            raise _Died
        tag = self._state.put(key, value, expect)
        if self._left == 0:
            raise _Died
        self._left -= 1
        return tag


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("entries", [0, 3, PER_SEGMENT - 2, PER_SEGMENT])
def test_a_writer_that_dies_anywhere_breaks_nothing(tmp_path: Path, entries: int, written: bool) -> None:
    """The log holds right after, is mended by the next writer, and lost only what was never written."""
    state = FolderState(tmp_path)
    log = AuditLog(state, "x")
    for one in drafts(entries):
        log.append(one)
    for at in range(4):
        before = log.verify().entries
        with contextlib.suppress(_Died):
            AuditLog(Dying(state, at, written), "x").append(*drafts(3, "dead"))
        found = log.verify()
        assert found.broken is None
        assert found.entries in (before, before + 3)
        head = log.append(*drafts(1, "next"))
        assert log.verify() == log.verify(Kept(head.count, head.hash))
        assert (head.count, log.head()) == (found.entries + 1, head)


def test_a_head_that_could_not_be_moved_is_moved_by_the_next(tmp_path: Path) -> None:
    """The entry stands already: an append that says so is not done again."""

    class Full(Dying):
        def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
            if key == HEAD:
                raise Temporary("the disk is full")
            return super().put(key, value, expect)

    state = FolderState(tmp_path)
    log = AuditLog(state, "x")
    first = log.append(*drafts(1))
    head = AuditLog(Full(state, 99, True), "x").append(*drafts(2))
    assert (head.count, log.head()) == (3, first)
    assert log.append(*drafts(1)).count == 4
    assert log.verify().broken is None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three segments; each test works on what it reads of it, or on a copy."""
    folder = tmp_path_factory.mktemp("log")
    log = open_audit(str(folder))
    for start in range(0, 2 * PER_SEGMENT + 16, 8):
        log.append(*[Draft(1.0, "a", "label", "j", "r", {"n": start + n}) for n in range(8)])
    return folder


class Copy:
    """A log whose documents are in memory, so that thousands of tamperings cost nothing."""

    def __init__(self, folder: Path) -> None:
        self.documents = {f"audit/{path.name}": path.read_bytes() for path in sorted((folder / "audit").iterdir())}

    def get(self, key: str) -> tuple[bytes, Tag] | None:
        return (self.documents[key], "") if key in self.documents else None

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.documents if key.startswith(prefix))

    def put(self, key: str, value: bytes, expect: Tag | Literal[Absent.ABSENT] | None) -> Tag:
        raise AssertionError("nobody writes here")

    @property
    def log(self) -> AuditLog:
        return AuditLog(self, "x")


@given(data=st.data())
def test_any_byte_that_is_changed_in_any_document_is_found(written: Path, data: st.DataObject) -> None:
    """Segments and head."""
    copy = Copy(written)
    key = data.draw(st.sampled_from(sorted(copy.documents)))
    changed = bytearray(copy.documents[key])
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    copy.documents[key] = bytes(changed)
    assert copy.log.verify().broken is not None


@given(data=st.data())
def test_any_truncation_of_any_document_is_found(written: Path, data: st.DataObject) -> None:
    """In bytes or whole lines, in the middle or at the end; a document that is gone too."""
    copy = Copy(written)
    key = data.draw(st.sampled_from(sorted(copy.documents)))
    whole = copy.documents[key]
    copy.documents[key] = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert copy.log.verify().broken is not None
    del copy.documents[key]
    assert copy.log.verify().broken is not None


@given(data=st.data())
def test_lines_removed_repeated_or_moved_between_segments_are_found(written: Path, data: st.DataObject) -> None:
    """What was done, and at which entry, is named."""
    copy = Copy(written)
    segments = [key for key in sorted(copy.documents) if key != HEAD]
    lines = [line for key in segments for line in copy.documents[key].splitlines(keepends=True)]
    last = len(lines) - 1
    what = data.draw(st.sampled_from(["removed", "duplicated", "reordered"]))
    at = data.draw(st.integers(0, last - 1))
    match what:
        case "removed":
            del lines[at]
        case "duplicated":
            lines.insert(data.draw(st.integers(at + 1, last)), lines[at])
        case _:
            other = data.draw(st.integers(at + 1, last))
            lines[at], lines[other] = lines[other], lines[at]
    for key in segments:
        copy.documents[key] = b""
    copy.documents[segments[0]] = b"".join(lines)
    assert fault(copy.log)[:2] == (what, at + 1)


def test_the_place_of_a_tampering_is_told(written: Path) -> None:
    """Document and line."""
    copy = Copy(written)
    key = "audit/000002.jsonl"
    copy.documents[key] = copy.documents[key].replace(b'{"n":130}', b'{"n":131}')
    assert fault(copy.log) == ("altered", 131, f"{key}, line 3")


def test_a_log_that_was_put_back_whole_is_found_by_a_kept_head(written: Path, tmp_path: Path) -> None:
    """An older copy of everything holds by itself."""
    log = open_audit(str(tmp_path))
    log.append(*drafts(2))
    older = Copy(tmp_path)
    head = log.append(*drafts(2))
    assert older.log.verify().broken is None
    assert fault(older.log, Kept(head.count, head.hash)) == ("truncated", 3, "your head")


TAMPERED: dict[str, Callable[[Path], object]] = {
    "the last entry is gone": lambda at: at.write_bytes(b"".join(at.read_bytes().splitlines(keepends=True)[:-1])),
    "the last line is altered": lambda at: at.write_bytes(at.read_bytes()[:-9]),
    "the segment is empty": lambda at: at.write_bytes(b""),
    "the segment is gone": lambda at: at.unlink(),
    "the head is gone": lambda at: (at.parent / "head.json").unlink(),
    "the head is altered": lambda at: (at.parent / "head.json").write_bytes(b"{}"),
    "the head is another log's": lambda at: (at.parent / "head.json").write_text(
        '{"count":2,"hash":"' + "a" * 64 + '"}\n'
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_nothing_is_written_behind_a_tampered_end(tmp_path: Path, what: str) -> None:
    """So what was done stays to be seen, and the person is told what to do."""
    log = open_audit(str(tmp_path))
    log.append(*drafts(3))
    TAMPERED[what](tmp_path / "audit" / "000001.jsonl")
    with pytest.raises(Corrupt, match="penstock audit verify"):
        log.append(*drafts(1))
    assert log.verify().broken is not None


def exported(folder: Path) -> list[bytes]:
    return list(open_audit(str(folder)).export())


def test_an_exported_log_is_verified_alone(written: Path) -> None:
    """Its head is its last line."""
    lines, head = exported(written), open_audit(str(written)).head()
    assert head is not None
    found = verify_lines("f", lines, Kept(head.count, head.hash))
    assert (found.entries, found.head, found.broken) == (272, head, None)
    empty = verify_lines("f", [])
    assert empty.broken is not None
    assert empty.broken.fault == "truncated"


@given(data=st.data())
def test_any_change_of_an_exported_log_is_found(written: Path, data: st.DataObject) -> None:
    """A byte, a line, its end."""
    lines = exported(written)
    text = b"".join(lines)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = bytearray(text)
    changed[at] ^= data.draw(st.integers(1, 255))
    line = data.draw(st.integers(0, len(lines) - 1))
    for tampered in (bytes(changed), text[:at], b"".join(lines[:line] + lines[line + 1 :])):
        assert verify_lines("f", lines_in(tampered)).broken is not None


def test_the_log_is_a_log_of_people_and_programs_not_of_prompts() -> None:
    """Of a command line, which may hold a prompt, its first words are kept."""
    typed = "penstock run rows.csv --prompt 'My secret: {{ text }}' --model x/y -o out.csv"
    assert actor_of(Holder("host", 1, "ann", 0.0, typed)) == "ann@host/penstock run"
    assert actor_of(Holder("host", 1, "ann", 0.0, "pipeline.py --key k")) == "ann@host/pipeline.py"
    assert actor_of(Holder("host", 1, "ann", 0.0)) == "ann@host/python"


def test_a_log_of_another_state_is_another_log(tmp_path: Path) -> None:
    """Each state URL has its own."""
    one, two = (open_state(str(tmp_path / name)) for name in ("a", "b"))
    AuditLog(one, "a").append(*drafts(1))
    assert AuditLog(two, "b").head() is None
    assert AuditLog(two, "b").verify().head == Head()
