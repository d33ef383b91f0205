"""The order of the demo."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from penstock.jobs.demo import extra, files, rehearsal, versions
from penstock.jobs.demo.stage import Stage
from penstock.jobs.wording import duration

FOLDER = "demo"


def main(quick: bool = False) -> int:
    """Play it in `./demo`; returns the exit code. Raises what penstock raises."""
    stage, began = Stage(), time.monotonic()
    folder = files.claim(Path.cwd() / FOLDER)
    stage.act("penstock: the whole thing, on this machine")
    install = None if quick else extra.begin(stage, folder)
    try:
        code = rehearsal.play(stage, folder)
        stage.say(f"\n[dim]the sandbox part took {duration(time.monotonic() - began)}[/]")
        if not quick:
            code = code or _versions(stage, folder)
        if code == 0 and install is not None:
            code = _real(stage, install, folder)
    finally:
        if install is not None:
            install.stop()
    if code == 0:
        _next(stage, folder, quick or install is None)
    return code


def _versions(stage: Stage, folder: Path) -> int:
    began = time.monotonic()
    code = versions.play(stage, folder)
    stage.say(f"\n[dim]the part about quality took {duration(time.monotonic() - began)}[/]")
    return code


def _real(stage: Stage, install: extra.Install, folder: Path) -> int:
    stage.act("now with a real model, on vLLM")
    if not install.wait(stage):
        return 4
    return subprocess.call([str(install.python), "-m", "penstock.jobs.demo", "real", str(folder)])


def _next(stage: Stage, folder: Path, quick: bool) -> None:
    stage.act("next")
    part = f"{folder.name}/sandbox" if quick else f"{folder.name}/real"
    lines = [
        (f"cd {part} && penstock explain ID", "one item's story, by its id"),
        (f"less {part}/job.yaml", "the job that ran: change it, run it"),
        ("penstock init my-job", "one of your own"),
    ]
    if quick:
        lines.append(("make demo", "this, then quality and a real model"))
    for command, what in lines:
        stage.say(f"  {command:<40}# {what}")
