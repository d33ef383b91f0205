"""Calls that wait in an engine of our own behind others, until nobody can use their answer. No vLLM is needed here."""

from __future__ import annotations

import pytest

from penstock.engine.catalog import Model, Version
from penstock.workers.engines.vllm_inproc import VllmInprocEngine
from penstock.workers.engines.vllm_procs import VllmProcsEngine
from tests.workers.test_api_engine import FOREVER, ticket

VERSION = Version("v1", "/nowhere/weights")
SMALL = Model("small", (VERSION,), "v1", worker="vllm")


def test_a_call_past_its_deadline_takes_no_place_in_the_engine() -> None:
    """Its item ends unsent, as where it waits in the lane: half a window may wait in an engine, for minutes."""
    engine = VllmInprocEngine(SMALL, VERSION, clock=lambda: 1_000.0)
    engine._begin(ticket(deadline=1_000.0))
    ((_, outcome),) = engine._done
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.may_be_billed, outcome.usage) == ("cancelled", False, None)


async def test_nor_in_one_with_processes_of_its_own() -> None:
    engine = VllmProcsEngine(SMALL, VERSION)
    outcome = await engine._outcome(ticket(deadline=1_000.0), 1_000.0, 0.0)
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.may_be_billed) == ("cancelled", False)
    with pytest.raises(Exception, match="never started"):  # it is in time, and would be begun
        await engine._outcome(ticket(deadline=FOREVER), 1_000.0, 0.0)
