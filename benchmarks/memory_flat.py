"""Does memory grow with the input? Peak of the whole process tree at 10,000 rows and at 1,000,000, one run of each.

    python benchmarks/memory_flat.py [--rows 10000 1000000] [--concurrency 128]

Job file to file against `fast_server.py` (not counted). Memory is the sum of the proportional set sizes (PSS, from
/proc/PID/smaps_rollup: shared pages are counted once) of the command and all that descends from it, Ray included,
sampled twice a second; the peak is printed, and by which process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from api_path import job_file, start_server, write_rows

MARK = "PENSTOCK_BENCH_MARK"


def pss(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def members(mark: str) -> list[psutil.Process]:
    """All processes that inherited the mark: also those whose parent is gone."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def peak(folder: Path, source: Path, url: str, concurrency: int, n: int) -> tuple[int, dict[str, int], float]:
    """(peak bytes, by process name at the peak, seconds)."""
    job = job_file(folder, source, url, concurrency, n)
    mark = f"{os.getpid()}-{n}"
    started = time.perf_counter()
    program = Path(sys.executable).parent / "penstock"
    environment = {**os.environ, MARK: mark}
    command = subprocess.Popen(
        [program, "run", job], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    most, at_most = 0, dict[str, int]()
    while command.poll() is None:
        now: dict[str, int] = {}
        for process in members(mark):
            with contextlib.suppress(psutil.Error):
                name = (process.cmdline() or [process.name()])[0][:48]
                now[f"{name} {process.pid}"] = pss(process.pid)
        if sum(now.values()) > most:
            most, at_most = sum(now.values()), now
        time.sleep(0.5)
    if command.returncode != 0:
        raise SystemExit(
            f"penstock ended with {command.returncode}:\n{command.stdout.read() if command.stdout else ''}"
        )
    return most, at_most, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--concurrency", type=int, default=128)
    options = parser.parse_args()
    peaks: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, url = start_server(0)
        try:
            for n, rows in enumerate(options.rows):
                source = folder / f"in{n}.jsonl"
                write_rows(source, rows)
                most, by_process, seconds = peak(folder, source, url, options.concurrency, n)
                peaks.append(most)
                print(f"{rows:>9,} rows: peak {most / 1e6:,.0f} MB in {len(by_process)} processes, {seconds:.0f} s")
                for process, size in sorted(by_process.items(), key=lambda pair: -pair[1])[:8]:
                    print(f"          {size / 1e6:7.1f} MB  {process}")
                sys.stdout.flush()
        finally:
            server.kill()
    print(f"growth: {(peaks[-1] - peaks[0]) / 1e6:,.0f} MB (promised: within 50 MB)")


if __name__ == "__main__":
    main()
