"""Tier 3 beside its rival: the same rows through `vllm.LLM.chat` and through Penstock, in output tokens per second.

    python benchmarks/tier3_vs_vllm.py [--rows 300] [--pairs 3] [--through engine|job] [--rival compiled|eager]
                                       [--model FOLDER] [--engine JSON]

Run it with the Python that has vLLM. Each side lives in a process of its own, loads once and then runs in turn with the
other, so that a slow minute of the machine hits both. Time runs from the first row handed over to the last answer;
loading is told apart. Every round has a prefix of its own, so that no round profits from the last one's cache.

The ratio of CPU time per row is told as well: with OMP_NUM_THREADS=1 it is steady even on a busy machine, where two
threads that wait for each other at every layer lose more than their share.

On a GPU both sides run vLLM's own defaults (compiled, CUDA graphs, the engine in a process of its own); give it rows
enough for half a minute. `--model` names another model's folder, `--engine` more settings for both sides:
`--engine '{"load_format": "dummy"}'` runs an architecture of which only the configuration and a tokenizer are there.

Caveats: one small model on a CPU; the order within a pair alternates; what else runs on the machine is in the numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from penstock.workers.engines.vllm_settings import cpu_defaults

ROOT = Path(__file__).parents[1]
GPU = any(Path("/dev").glob("nvidia[0-9]*"))
CPU_SETTINGS: dict[str, Any] = {"kv_cache_memory_bytes": 1 << 30, "block_size": 32}
GPU_SETTINGS: dict[str, Any] = {"gpu_memory_utilization": 0.45}  # both sides are loaded at once
SETTINGS: dict[str, Any] = {
    "max_model_len": 2048,
    "dtype": "bfloat16" if GPU else cpu_defaults()["dtype"],
    **(GPU_SETTINGS if GPU else CPU_SETTINGS),
}
"""Both sides run with these; --seats says how many sequences are run at once, --engine adds more."""


def rows(count: int, round_number: int) -> list[tuple[list[dict[str, str]], int]]:
    """Chats of mixed length made from the packages installed here: (messages, ceiling of the answer)."""
    found: list[tuple[list[dict[str, str]], int]] = []
    packages = sorted(importlib.metadata.distributions(), key=lambda one: str(one.metadata["Name"]).lower())
    tasks = (("Name one topic of this package.", 8), ("Summarise this package.", 32), ("Explain this package.", 64))
    number = 0
    while len(found) < count:
        package = packages[number % len(packages)].metadata
        task, ceiling = tasks[number % len(tasks)]
        # Lengths from a line to a page, by a stride that has nothing to do with the order of the names.
        text = (package.get_payload() or package["Summary"] or "")[: 40 + (number * 197) % 800]
        user = f"{package['Name']} ({number}): {package['Summary']}\n{text}"
        system = f"Round {round_number}. {task}"
        found.append(([{"role": "system", "content": system}, {"role": "user", "content": user}], ceiling))
        number += 1
    return found


def model_folder() -> str:
    path = ROOT / "infra" / "local" / "model.py"
    spec = importlib.util.spec_from_file_location("penstock_local_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.small_model())


def tell(**fields: object) -> None:
    print("RESULT " + json.dumps(fields), flush=True)


def serve_rival(folder: str, count: int, eager: bool, settings: dict[str, Any]) -> None:
    """The child that is vLLM alone. A process more for its engine is its fastest setting on a GPU, not on a CPU."""
    processes = "1" if GPU else "0"
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING=processes, HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")
    began = time.perf_counter()
    from vllm import LLM, SamplingParams

    llm = LLM(model=folder, enforce_eager=eager, **settings)
    tell(load_s=time.perf_counter() - began)
    for line in sys.stdin:
        work = rows(count, int(line))
        params = [SamplingParams(temperature=0, max_tokens=ceiling) for _, ceiling in work]
        cpu, start = time.process_time(), time.perf_counter()
        answers: Any = llm.chat([messages for messages, _ in work], params, use_tqdm=False)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        output = sum(len(one.outputs[0].token_ids) for one in answers)
        tell(seconds=seconds, output=output, answers=len(answers), cpu_s=cpu)


async def serve_engine(folder: str, count: int, settings: dict[str, Any]) -> None:
    """The child that is Penstock's engine, fed as a worker feeds it: as much as it has room for."""
    from penstock.engine.catalog import Model, Version
    from penstock.workers.engines.vllm import vllm_engine

    model = Model(name="small", versions=(Version("v1", folder),), live="v1", worker="vllm", engine=settings)
    began = time.perf_counter()
    engine = vllm_engine(model, model.live_version)
    await engine.start()
    tell(load_s=time.perf_counter() - began)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        waiting = tickets(rows(count, int(line)))
        before = engine.gauges()
        cpu, start = time.process_time(), time.perf_counter()
        output, left = 0, len(waiting)
        while left:
            if room := min(engine.room(), len(waiting)):
                engine.submit([waiting.pop() for _ in range(room)])
            for _, outcome in await engine.outcomes():
                left -= 1
                output += outcome.usage.output if outcome.usage else 0
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        busy = engine.gauges()["busy_s"] - before["busy_s"]
        tell(seconds=seconds, output=output, answers=count, busy_s=busy, cpu_s=cpu)
    await engine.close()


def tickets(work: list[tuple[list[dict[str, str]], int]]) -> list[Any]:
    """Last row first: they are popped from the end."""
    from penstock.engine.items import Call
    from penstock.workers.engines.base import Right, Ticket

    right = Right("bench", 0, (1, 1), 1e12)
    made: list[Any] = []
    for number, (messages, ceiling) in enumerate(work):
        body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": ceiling}).encode()
        call = Call(
            item_id=f"{number:032x}",
            generation=0,
            attempt=1,
            role="primary",
            model="small",
            version="v1",
            upstream="small",
            body_json=body,
            task="bench",
            max_tokens=ceiling,
            timeout_s=600.0,
            est_input_tokens=0,
            max_input_tokens=0,
        )
        made.append(Ticket(call, right, None))
    return made[::-1]


class Child:
    """One side in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, "--child", *arguments]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        self.load_s: float = self._result()["load_s"]

    def run(self, round_number: int) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{round_number}\n")
        self._process.stdin.flush()
        return self._result()

    def _result(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line[7:])
        assert self._process.stderr is not None
        raise SystemExit(f"a side died:\n{self._process.stderr.read()[-3000:]}")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


CLUSTER = """
import ray, sys
from penstock.workers.cluster import open_cluster
with open_cluster():
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


class Job:
    """The whole of Penstock: a job file, `penstock run`. Time runs from the first call to the finished file.

    The first round is a command with a Ray of its own: how long it takes to load is told from that. Later ones are
    commands on a cluster where the engine stays loaded, as the rival's does: vLLM's first batches after a load are
    slow."""

    def __init__(self, model: str, count: int, settings: dict[str, Any]) -> None:
        self._model = model
        self._count = count
        self._engine = settings
        self._folder = Path(tempfile.mkdtemp(prefix="tier3-"))
        self._env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._env["RAY_AUTH_MODE"] = "token"
        self._cluster: subprocess.Popen[str] | None = None
        self._rounds = 0
        began = time.time()
        self.load_s = self.run()["first_at"] - began
        self._join()
        self.run()  # loads the engine there

    def _join(self) -> None:
        self._cluster = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._env
        )
        assert self._cluster.stdout is not None
        self._env["RAY_ADDRESS"] = self._cluster.stdout.readline().strip()

    def run(self, round_number: int = 0) -> dict[str, float]:
        self._rounds += 1
        folder = self._folder / str(self._rounds)
        folder.mkdir()
        with (folder / "in.jsonl").open("w") as out:
            for number, (messages, ceiling) in enumerate(rows(self._count, round_number)):
                body = {"model": "auto", "messages": messages, "max_tokens": ceiling, "temperature": 0}
                line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
                out.write(json.dumps(line) + "\n")
        model = {"name": "small", "worker": "vllm", "model": self._model, "hour_usd": 0.1, "engine": self._engine}
        job = {"name": f"round{self._rounds}", "source": "in.jsonl", "models": [model], "sinks": "out.jsonl"}
        job["execution"] = {"keep_s": 600}
        (folder / "job.json").write_text(json.dumps(job))
        command = [Path(sys.executable).parent / "penstock", "run", "job.json"]
        done = subprocess.run(command, cwd=folder, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"penstock run ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        status = json.loads(next((folder / ".penstock" / "runs").glob("*/status.json")).read_text())
        first_at = status["first_dispatch_at"]
        output = sum(one["output_tokens"] for one in status["tally"]["models"].values())
        return {"output": output, "seconds": status["ended_at"] - first_at, "first_at": first_at}

    def end(self) -> None:
        if self._cluster is not None:
            assert self._cluster.stdin is not None
            self._cluster.stdin.close()
            self._cluster.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)


def compare(chosen: argparse.Namespace) -> None:
    count, pairs, through = chosen.rows, chosen.pairs, chosen.through
    model = chosen.model or model_folder()
    settings = {**SETTINGS, "max_num_seqs": chosen.seats, **chosen.engine}
    common = ["--rows", str(count), "--rival", chosen.rival, "--model", model, "--engine", json.dumps(settings)]
    theirs = Child("rival", *common)
    ours = Job(model, count, settings) if through == "job" else Child("engine", *common)
    cold = theirs.run(0)  # for what is made on first use
    ours.run(0)
    print(f"vllm.LLM.chat's first round after its load: {cold['output'] / cold['seconds']:.0f} tok/s", flush=True)
    print(f"loaded in {theirs.load_s:.1f} s (vllm.LLM), {ours.load_s:.1f} s (Penstock's {through})")
    ratios: list[float] = []
    for pair in range(1, pairs + 1):
        sides = {"theirs": theirs, "ours": ours}
        order = ("theirs", "ours") if pair % 2 else ("ours", "theirs")
        done = {name: sides[name].run(pair) for name in order}
        rates = {name: one["output"] / one["seconds"] for name, one in done.items()}
        ratios.append(rates["ours"] / rates["theirs"])
        print(
            f"pair {pair}: vllm.LLM.chat {rates['theirs']:.0f} tok/s in {done['theirs']['seconds']:.1f} s, "
            f"Penstock {rates['ours']:.0f} tok/s in {done['ours']['seconds']:.1f} s, ratio {ratios[-1]:.3f}"
            + of_cpu(done["theirs"], done["ours"]),
            flush=True,
        )
    theirs.end(), ours.end()
    print(f"median ratio {statistics.median(ratios):.3f} (wanted: at least 0.95)")


def of_cpu(theirs: dict[str, float], ours: dict[str, float]) -> str:
    """A job's processes are Ray's: what they took is not told."""
    return f", of CPU time {theirs['cpu_s'] / ours['cpu_s']:.3f}" if "cpu_s" in ours else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seats", type=int, default=64)
    parser.add_argument("--model", help="a folder that vLLM loads; SmolLM2-135M-Instruct where none is named")
    parser.add_argument("--engine", type=json.loads, default={}, help="more settings of both engines, as JSON")
    parser.add_argument("--rival", choices=["eager", "compiled"], default="eager")
    parser.add_argument("--through", choices=["engine", "job"], default="engine")
    parser.add_argument("--child", choices=["rival", "engine"])
    chosen = parser.parse_args()
    if chosen.child is None:
        compare(chosen)
    elif chosen.child == "rival":
        serve_rival(chosen.model, chosen.rows, chosen.rival == "eager", chosen.engine)
    else:
        asyncio.run(serve_engine(chosen.model, chosen.rows, chosen.engine))


if __name__ == "__main__":
    main()
