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
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
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


BARE = """
import asyncio, sys, time
import aiohttp, msgspec
source, out, url, concurrency = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
async def main():
    lines = open(source, 'rb')
    sink = open(out, 'wb')
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:
        async def work():
            for line in lines:
                row = msgspec.json.decode(line)
                body = row['body']; body['model'] = 'm'
                data = msgspec.json.encode(body)
                async with session.post(url + '/v1/chat/completions', data=data, headers={'Content-Type': 'application/json'}) as r:
                    answer = msgspec.json.decode(await r.read())
                sink.write(msgspec.json.encode({'custom_id': row['custom_id'], 'response': {'body': answer}}) + b'\\n')
        await asyncio.gather(*(work() for _ in range(concurrency)))
    sink.close()
start = time.perf_counter()
asyncio.run(main())
print(time.perf_counter() - start)
"""

LITELLM = """
import asyncio, json, sys, time
import litellm
source, url, concurrency, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
router = litellm.Router(model_list=[{'model_name': 'm', 'litellm_params': {'model': 'openai/m', 'api_base': url + '/v1', 'api_key': 'x'}}])
async def main():
    lines = iter([json.loads(l)['body'] for l in open(source)][:rows])
    async def work():
        for body in lines:
            await router.acompletion(model='m', messages=body['messages'], max_tokens=16)
    await asyncio.gather(*(work() for _ in range(concurrency)))
start = time.perf_counter()
asyncio.run(main())
print(time.perf_counter() - start)
"""


def bare(source: Path, out: Path, url: str, concurrency: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", BARE, source, out, url, str(concurrency)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def litellm_router(source: Path, url: str, concurrency: int, rows: int) -> float | None:
    arguments = [sys.executable, "-c", LITELLM, source, url, str(concurrency), str(rows)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def penstock(folder: Path, source: Path, url: str, concurrency: int, n: int) -> tuple[float, float, float]:
    """(seconds of work, seconds in all, seconds to the first call)."""
    out = folder / f"out{n}"
    job = folder / f"job{n}.json"
    account = {"protocol": "openai", "base_url": f"{url}/v1", "limits": {"concurrency": concurrency}}
    job.write_text(
        json.dumps(
            {
                "name": f"bench{n}",
                "source": str(source),
                "accounts": {"fast": account},
                "models": [
                    {
                        "name": "m",
                        "account": "fast",
                        "model": "m",
                        "price": {"input_per_million": 1, "output_per_million": 2},
                    }
                ],
                "sinks": {"results": f"{out}/results.jsonl"},
                "state": f"{out}/state",
            }
        )
    )
    start = time.perf_counter()
    program = Path(sys.executable).parent / "penstock"
    subprocess.run([program, "run", job], capture_output=True, text=True, check=True)
    whole = time.perf_counter() - start
    status = json.loads(next((out / "state" / "runs").glob("*/status.json")).read_text())
    work_s = status["ended_at"] - status["first_dispatch_at"]
    return work_s, whole, status["first_dispatch_at"] - status["started_at"]


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
                    f"pair {n}: penstock {ours:,.0f}/s (whole {options.rows / whole:,.0f}/s, first call after {first:.1f} s), "
                    f"bare aiohttp {rival:,.0f}/s, ratio {ours / rival:.2f}",
                    flush=True,
                )
            print(f"median ratio to bare aiohttp: {statistics.median(ratios):.2f}")
            seconds = litellm_router(source, url, options.concurrency, options.litellm_rows)
            if seconds is None:
                print("litellm is not installed: uv sync --group bench")
            else:
                theirs = options.litellm_rows / seconds
                print(
                    f"litellm.Router {theirs:,.0f}/s; penstock is {statistics.median(ratios) * rival / theirs:,.0f} ×"
                )
        finally:
            server.kill()


if __name__ == "__main__":
    main()
