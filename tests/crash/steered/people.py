"""A person who labels at a real terminal, and another tool whose labels are imported, while the commands are killed."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from penstock.connectors.state import open_state
from penstock.jobs.people import work
from penstock.jobs.people.labels import Labels
from tests.crash.bench import MAIN
from tests.crash.steered.faults import Fault, label_faults
from tests.jobs.test_label import terminal

CHOICES = ("left", "right", "neither")
PERSON, TOOL = "ann", "tool"
ROWS = "rows.jsonl"
_SHOWN = re.compile(r"(\d+) of \d+  .*row number (\d+)\..*quit", re.DOTALL)


class Labelling:
    """Rows of a file, in the folder where the test stands."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        self.rows = rows
        made = [{"text": f"This is row number {n}."} for n in range(rows)]
        (folder / ROWS).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in made))
        self.items = [one.item_id for one in work.rows(str(folder / ROWS), CHOICES)]
        self.accepted: dict[tuple[str, str], str] = {}
        self.doubtful: list[tuple[str, str, str]] = []
        self.kills = 0
        self._write_import()

    @property
    def _log(self) -> Labels:
        return Labels(open_state(str(self.folder / ".penstock")), work.name_of_rows(ROWS))

    def _write_import(self) -> None:
        lines = [{"item_id": item, "label": CHOICES[n % 2], "by": TOOL} for n, item in enumerate(self.items)]
        (self.folder / "theirs.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def sit(self, chance: random.Random, labels: int) -> None:
        """So many labels, then one more in the midst of which the command is killed. Nothing where all is labelled."""
        argv = ("label", ROWS, "--choices", ",".join(CHOICES), "--by", PERSON)
        with terminal(*argv) as at:
            waiting: tuple[str, str] | None = None
            for _ in range(labels + 1):
                shown = at.until(r"\d+ of \d+.*quit")
                found = _SHOWN.search(shown)
                assert found is not None, shown
                if waiting is not None:
                    self.accepted[waiting[0], PERSON] = waiting[1]
                item = self.items[int(found[2])]
                if (item, PERSON) in self.accepted:  # the last one stays on the screen
                    return
                waiting = item, CHOICES[int(found[2]) % 3]
                at.press(str(int(found[2]) % 3 + 1))
            if waiting is not None:
                self.doubtful.append((waiting[0], PERSON, waiting[1]))
            _wait(at.process, chance.uniform(0.0, 0.03))
            at.process.send_signal(signal.SIGKILL)
            at.process.wait(timeout=20)
            self.kills += 1

    def take(self, chance: random.Random | None) -> None:
        """What the other tool says; killed while it is taken where there is a `chance`."""
        command = subprocess.Popen(
            [sys.executable, "-c", MAIN, "label", "import", ROWS, "theirs.jsonl", "--choices", ",".join(CHOICES)],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        said = [(item, TOOL, CHOICES[n % 2]) for n, item in enumerate(self.items)]
        if chance is None:
            assert command.wait(60) == 0
            self.accepted |= {(item, by): label for item, by, label in said}
            return
        self.doubtful += said
        _wait(command, chance.uniform(0.2, 1.2))
        command.kill()
        command.wait()
        self.kills += 1

    @property
    def done(self) -> bool:
        return sum(by == PERSON for _, by in self._log.said()) == self.rows

    def faults(self) -> Iterator[Fault]:
        # What stood when the next sitting began was accepted, though nobody saw it.
        said = {(item, by): label.says for (item, by), label in self._log.said().items()}
        kept = {(item, by): says for item, by, says in self.doubtful if said.get((item, by)) == says}
        return label_faults({**kept, **self.accepted}, self.doubtful, self._log.history())


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
