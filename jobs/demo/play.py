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
    stage.say(f"  {f'cd {part} && penstock explain ID':<42}  # one item's whole story, by the id in its record")
    stage.say(f"  {f'less {part}/job.yaml':<42}  # the job that just ran; change it, run it")
    stage.say("  penstock init my-job                        # one of your own")
    if quick:
        more = "quality: an evaluation, a rollout; then a real model"
        stage.say(f"  {'make demo':<42}  # the same, and {more}")
