"""The quickstart does what it says: its own commands, in its own order. Only the ports are others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.jobs.dev.fetch import MissingTool
from penstock.jobs.dev.kafka import jars
from penstock.jobs.dev.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "kafka-quickstart.md"
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
_ENDED = re.compile(r"^@@ (\d+) (.*)$", re.MULTILINE)


def commands() -> list[str]:
    return [line for block in _BLOCK.findall(PAGE.read_text()) for line in block.splitlines()]


def script(kafka: int, sandbox: int) -> str:
    """Every command, and a line that says how it ended."""
    lines: list[str] = []
    for command in commands():
        typed = command
        if command.startswith("penstock dev up"):
            typed += f" --kafka-port {kafka} --sandbox-port {sandbox}"
        lines += [typed, f"echo '@@' $? '{command.replace(chr(39), '')}'"]
        if command.startswith("cd "):
            lines.append(f"sed -i 's/127.0.0.1:9092/127.0.0.1:{kafka}/' job.yaml")
    return "\n".join(lines)


@pytest.mark.long
@pytest.mark.kafka
@pytest.mark.ray
def test_the_quickstart_works_as_it_is_written(tmp_path: Path, mark: str) -> None:
    """A newcomer's first five minutes: each command ends well, but for the run whose dead letter is the lesson."""
    try:
        jars()
    except MissingTool as error:
        pytest.skip(str(error))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PENSTOCK_DASHBOARD", None)  # as a newcomer has it
    done = subprocess.run(
        ["bash", "-c", script(free_port(), free_port())],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    ended = {command: int(code) for code, command in _ENDED.findall(done.stdout)}
    assert len(ended) == len(set(commands())), done.stdout + done.stderr
    wrong = {
        command: code for command, code in ended.items() if code != (5 if command == "penstock run job.yaml" else 0)
    }
    assert not wrong, done.stdout + done.stderr
    assert "13: 12 results, 1 dead letter" in done.stdout
    assert "unknown_sensitivity" in done.stdout
    assert "1: 1 result" in done.stdout
    shown = done.stdout.split("@@ 0 penstock dead-letters replay")[1]
    assert len([line for line in shown.splitlines() if "  pretend  $" in line]) == 13
