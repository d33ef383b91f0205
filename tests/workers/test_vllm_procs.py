"""The engine in processes of its own, on a tiny random model. One test, since its start takes half a minute here."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: uv sync --extra cpu"),
]

ROOT = Path(__file__).parents[2]


def test_the_engine_in_processes_has_the_same_manners() -> None:
    """Answers, choices, bad requests and aborts as in process; a killed core is told as a dead engine at once.

    In a process of its own: the two shapes want opposite settings before vLLM is imported.
    """
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["kinds"] == ["ok"] * 12 + ["bad_request", "too_long", "not_sent"]
    assert set(told["chosen"]) <= {"red", "green"}
    assert told["output"] == [5] * 8
    assert told["aborted"] == ["cancelled"] * 6
    assert told["progress"] >= 40
    assert told["dead"] == 3


async def story() -> dict[str, object]:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_vllm_inproc import answer_all, drain, kind, ticket, tiny

    from penstock.engine.items import OutputSpec
    from penstock.workers.engines.base import EngineDead
    from penstock.workers.engines.vllm import vllm_engine
    from penstock.workers.engines.vllm_procs import VllmProcsEngine

    model = tiny(processes=True, kv_cache_memory_bytes=64 << 20)
    engine = vllm_engine(model, model.live_version)
    assert isinstance(engine, VllmProcsEngine)
    await engine.start()
    plain = [ticket(n, max_tokens=5, ignore_eos=True) for n in range(8)]
    chosen = [ticket(n, output=OutputSpec(choices=("red", "green")), max_tokens=20) for n in range(8, 12)]
    bad = [
        ticket(12, b"{}"),
        ticket(13, {"messages": [{"role": "user", "content": "a" * 600}]}),
        ticket(14, until=0.0),
    ]
    found = await answer_all(engine, [*plain, *chosen, *bad])
    unwanted = [ticket(n, max_tokens=400, ignore_eos=True) for n in range(6)]
    engine.submit(unwanted)
    engine.abort(unwanted)
    aborted: list[str] = []
    while len(aborted) < 6:
        aborted += [kind(outcome) for _, outcome in await engine.outcomes()]
    progress = engine.gauges()["progress"]
    engine.submit([ticket(n, max_tokens=400, ignore_eos=True) for n in range(3)])
    await asyncio.sleep(0)
    for core in multiprocessing.active_children():
        os.kill(core.pid or 0, signal.SIGKILL)
    with pytest.raises(EngineDead):
        await drain(engine)
    dead = len(engine.held())
    await engine.close()
    return {
        "kinds": [kind(found[f"item{n}"]) for n in range(15)],
        "chosen": [found[f"item{n}"].answer.text for n in range(8, 12)],  # type: ignore[union-attr]
        "output": [found[f"item{n}"].usage.output for n in range(8)],  # type: ignore[union-attr]
        "aborted": aborted,
        "progress": progress,
        "dead": dead,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(story())), flush=True)
    os._exit(0)
