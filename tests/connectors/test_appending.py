"""Lines that are only ever added: none is lost, whoever else adds, and whenever a writer is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from penstock.connectors.appending import SEGMENT_BYTES, Appending
from penstock.connectors.state import open_state

WRITER = (
    "import sys; from penstock.connectors.appending import Appending\n"
    "from penstock.connectors.state import open_state\n"
    "log = Appending(open_state(sys.argv[1]), 'a/')\n"
    "for n in range(int(sys.argv[3])):\n"
    "    log.append([b'%s %d' % (sys.argv[2].encode(), n)])\n"
    "    print(n, flush=True)\n"
)


def writer(folder: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", WRITER, str(folder), name, str(count)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def test_writers_at_once_lose_no_line_and_keep_their_own_order(tmp_path: Path) -> None:
    """Three processes into one log."""
    others = [writer(tmp_path, name, 40) for name in "xyz"]
    for other in others:
        other.communicate(timeout=60)
    lines = list(Appending(open_state(str(tmp_path)), "a/").lines())
    for name in "xyz":
        own = [line for line in lines if line.startswith(name.encode())]
        assert own == [b"%s %d" % (name.encode(), n) for n in range(40)]
    assert len(lines) == 120


def test_what_was_said_to_be_added_is_there_after_a_kill(tmp_path: Path) -> None:
    """Every line that the killed writer had heard of stands, and at most one more."""
    killed = writer(tmp_path, "x", 100_000)
    assert killed.stdout is not None
    until = time.monotonic() + 30
    heard = [int(killed.stdout.readline()) for _ in range(20) if time.monotonic() < until]
    killed.kill()
    rest = killed.communicate(timeout=30)[0].split()
    told = len(heard) + len(rest)
    lines = list(Appending(open_state(str(tmp_path)), "a/").lines())
    assert lines == [b"x %d" % n for n in range(len(lines))]
    assert told <= len(lines) <= told + 1


def test_a_full_segment_is_left_as_it_is_and_the_next_begun(tmp_path: Path) -> None:
    """Also for one who comes new, and for more lines at once than a segment holds."""
    state = open_state(str(tmp_path))
    many = [b"%06d" % n + b"." * 994 for n in range(600)]
    Appending(state, "a/").append(many[:100])
    Appending(state, "a/").append(many[100:])
    Appending(state, "b/").append([b"other"])
    sizes = [len(found[0]) for key in state.list("a/") if (found := state.get(key)) is not None]
    assert len(sizes) == 3
    assert max(sizes) <= SEGMENT_BYTES
    assert list(Appending(state, "a/").lines()) == many
