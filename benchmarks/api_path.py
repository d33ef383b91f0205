"""API path, whole job file to file, beside a bare aiohttp loop and `litellm.Router` over the same file and server.

    python benchmarks/api_path.py [--rows 40000] [--delay-ms 0] [--concurrency 128] [--pairs 3] [--litellm-rows 400]

The rival "bare loop" reads the file, calls, and writes the answers: no routing, no budget, no records, no progress, no
crash safety. All run against `fast_server.py` in a process of its own, in turn (A B A B …), in one run of this script.
Rates are requests/s from the first request to the finished file; `whole` counts Penstock's start and end as well.
Caveat: two cores are shared by client and server here; the ratio moves with what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
PRICE = {"input_per_million": 1, "output_per_million": 2}
LITELLM = "litellm==1.110.2"
TEXT = "Which department handles this message? My parcel has not arrived and the tracking page shows nothing. "


def write_rows(path: Path, rows: int) -> None:
    with path.open("w") as out:
        for n in range(rows):
            body = {"model": "auto", "messages": [{"role": "user", "content": f"{TEXT}{n}"}], "max_tokens": 16}
            line = {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")


def start_server(delay_ms: float) -> tuple[subprocess.Popen[bytes], str]:
    port = 18_000 + int(time.time()) % 2_000
    server = subprocess.Popen(
        [sys.executable, HERE / "fast_server.py", "--port", str(port), "--delay-ms", str(delay_ms)]
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=1)
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.05)
        else:
            break
    return server, url


def bare(source: Path, out: Path, url: str, concurrency: int) -> float:
    done = subprocess.run(
        [sys.executable, HERE / "rivals" / "bare_loop.py", source, out, url, str(concurrency)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def litellm_router(source: Path, url: str, concurrency: int, rows: int) -> float | None:
    """In an environment of its own, thrown away afterwards: Penstock does not depend on it."""
    uv = shutil.which("uv", path=f"{os.environ.get('PATH', '')}{os.pathsep}{HERE.parent / '.venv-uv' / 'bin'}")
    if uv is None:
        return None
    script = HERE / "rivals" / "litellm_router.py"
    arguments = [uv, "run", "--no-project", "--isolated", "--with", LITELLM, "python", script, source, url]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it first waits for a download
    try:
        done = subprocess.run(
            [*arguments, str(concurrency), str(rows)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
    except subprocess.SubprocessError as error:
        print(f"litellm.Router: {error}; {(getattr(error, 'stderr', None) or b'')[-500:]!r}")
        return None
    return float(done.stdout.splitlines()[-1])


def job_file(folder: Path, source: Path, url: str, concurrency: int, n: int) -> Path:
    """A job of its own name, outputs and state."""
    out = folder / f"out{n}"
    job = folder / f"job{n}.json"
    account = {"protocol": "openai", "base_url": f"{url}/v1", "limits": {"concurrency": concurrency}}
    job.write_text(
        json.dumps(
            {
                "name": f"bench{n}",
                "source": str(source),
                "accounts": {"fast": account},
                "models": [{"name": "m", "account": "fast", "model": "m", "price": PRICE}],
                "sinks": {"results": f"{out}/results.jsonl"},
                "state": f"{out}/state",
            }
        )
    )
    return job


def penstock(
    folder: Path, source: Path, url: str, concurrency: int, n: int, edit: Callable[[Path], None] | None = None
) -> tuple[float, float, float]:
    """(seconds of work, seconds in all, seconds from the command to the first call). `edit`: changes the job file."""
    job, out = job_file(folder, source, url, concurrency, n), folder / f"out{n}"
    if edit is not None:
        edit(job)
    start, began = time.perf_counter(), time.time()
    program = Path(sys.executable).parent / "penstock"
    subprocess.run([program, "run", job], capture_output=True, text=True, check=True)
    whole = time.perf_counter() - start
    status = json.loads(next((out / "state" / "runs").glob("*/status.json")).read_text())
    work_s = status["ended_at"] - status["first_dispatch_at"]
    return work_s, whole, status["first_dispatch_at"] - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--litellm-rows", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        write_rows(source, options.rows)
        server, url = start_server(options.delay_ms)
        try:
            ratios: list[float] = []
            for n in range(options.pairs):
                rival = options.rows / bare(source, folder / "bare.jsonl", url, options.concurrency)
                work_s, whole, first = penstock(folder, source, url, options.concurrency, n)
                ours = options.rows / work_s
                ratios.append(ours / rival)
                print(
                    f"pair {n}: penstock {ours:,.0f}/s, bare aiohttp {rival:,.0f}/s, ratio {ours / rival:.2f}", end="; "
                )
                print(f"whole command {options.rows / whole:,.0f}/s, command to first call {first:.1f} s", flush=True)
            print(f"median ratio to bare aiohttp: {statistics.median(ratios):.2f}")
            if not options.litellm_rows:
                return
            seconds = litellm_router(source, url, options.concurrency, options.litellm_rows)
            if seconds is None:
                print("litellm.Router could not be run")
            else:
                theirs = options.litellm_rows / seconds
                print(
                    f"litellm.Router {theirs:,.0f}/s; penstock is {statistics.median(ratios) * rival / theirs:,.0f} ×"
                )
        finally:
            server.kill()


if __name__ == "__main__":
    main()
