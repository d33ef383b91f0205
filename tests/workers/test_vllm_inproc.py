"""The in-process engine, on a tiny random model: its words mean nothing, its manners must be perfect."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from penstock.engine.catalog import EngineValue, Model, Version
from penstock.engine.errors import SpecError
from penstock.engine.items import Call, Outcome, OutputSpec
from penstock.workers.engines.base import Engine, EngineDead, Right, Ticket
from penstock.workers.engines.vllm_inproc import VllmInprocEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: uv sync --extra cpu"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's imports warn of other people's deprecations
    pytest.mark.asyncio(loop_scope="module"),
]

CONTEXT = 512
SEATS = 8
COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


def tiny_folder() -> Path:
    path = Path(__file__).parents[2] / "infra" / "local" / "model.py"
    spec = importlib.util.spec_from_file_location("penstock_local_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny_model()


def tiny(**engine: EngineValue) -> Model:
    settings: dict[str, EngineValue] = {"max_model_len": CONTEXT, "max_num_seqs": SEATS, **engine}
    version = Version(id="v1", model=str(tiny_folder()), revision="main")
    return Model(name="tiny", versions=(version,), live="v1", worker="vllm", engine=settings)


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(quiet: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmInprocEngine]:
    """Of a folder as a hub's cache names it."""
    model = tiny(kv_cache_memory_bytes=64 << 20)
    snapshot = tmp_path_factory.mktemp("models--o--tiny") / "snapshots" / COMMIT
    snapshot.parent.mkdir()
    snapshot.symlink_to(model.live_version.model)
    version = msgspec.structs.replace(model.live_version, model=str(snapshot))
    engine = VllmInprocEngine(model, version, worker="w0")
    await engine.start()
    yield engine
    await engine.close()


def ticket(
    n: int = 0,
    body: dict[str, Any] | bytes | None = None,
    *,
    output: OutputSpec | None = None,
    max_tokens: int = 8,
    realtime: bool = False,
    timeout_s: float = 60.0,
    until: float = 1e12,
    **fields: Any,
) -> Ticket:
    messages = [{"role": "user", "content": f"number {n}"}]
    if not isinstance(body, bytes):
        body = json.dumps(body if body is not None else {"messages": messages, **fields}).encode()
    call = Call(
        item_id=f"item{n}",
        generation=0,
        attempt=1,
        role="primary",
        model="tiny",
        version="v1",
        upstream="tiny-random",
        body_json=body,
        task="t",
        max_tokens=max_tokens,
        timeout_s=timeout_s,
        est_input_tokens=10,
        max_input_tokens=100,
        realtime=realtime,
    )
    return Ticket(call, Right("run", 0, (1, 1), until), output)


async def answer_all(engine: Engine, tickets: Sequence[Ticket]) -> dict[str, Outcome]:
    """Submit, and wait until each has its outcome; a second outcome for one fails here."""
    engine.submit(tickets)
    found: dict[str, Outcome] = {}
    while len(found) < len(tickets):
        for one, outcome in await engine.outcomes():
            assert one in tickets
            assert outcome.item_id not in found
            found[outcome.item_id] = outcome
    return found


async def answer_one(engine: Engine, one: Ticket) -> Outcome:
    return (await answer_all(engine, [one]))[one.call.item_id]


async def drain(engine: Engine) -> None:
    while True:
        await engine.outcomes()


def kind(outcome: Outcome) -> str:
    assert (outcome.answer is None) != (outcome.failure is None)
    return outcome.failure.kind if outcome.failure else "ok"


async def test_every_ticket_gets_exactly_one_outcome(engine: VllmInprocEngine) -> None:
    """Good, bad and unwanted ones mixed, many times what the engine runs at once."""
    tickets = [ticket(n, ignore_eos=True) if n % 3 else ticket(n, b"{}") for n in range(100)]
    found = await answer_all(engine, tickets)
    assert {kind(found[f"item{n}"]) for n in range(100) if n % 3} == {"ok"}
    assert {kind(found[f"item{n}"]) for n in range(0, 100, 3)} == {"bad_request"}
    assert engine.held() == []
    assert engine.gauges()["running"] == 0


async def test_an_answer_is_an_openai_body_with_true_usage(engine: VllmInprocEngine) -> None:
    """id, model, choices and usage as OpenAI's clients read them, and the same numbers in the outcome."""
    outcome = await answer_one(engine, ticket(ignore_eos=True, max_tokens=5))
    assert outcome.answer is not None
    assert outcome.usage is not None
    body = json.loads(outcome.answer.body_json)
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": outcome.answer.text}
    assert body["choices"][0]["finish_reason"] == outcome.answer.finish_reason == "length"
    assert body["usage"]["completion_tokens"] == outcome.usage.output == 5
    assert body["usage"]["prompt_tokens"] == outcome.usage.input > 10
    assert outcome.worker == "w0"
    assert outcome.ms > 0
    assert outcome.answer.fingerprint == COMMIT, "the weights that answered"


async def test_an_answer_is_one_of_the_choices(engine: VllmInprocEngine) -> None:
    """Whatever the model would like to say."""
    choices = ("delivery", "billing", "product")
    tickets = [ticket(n, output=OutputSpec(choices=choices), max_tokens=20, temperature=1.0) for n in range(12)]
    found = await answer_all(engine, tickets)
    assert {outcome.answer.text for outcome in found.values() if outcome.answer} <= set(choices)
    assert all(kind(outcome) == "ok" for outcome in found.values())


async def test_an_answer_obeys_the_schema(engine: VllmInprocEngine) -> None:
    """A random model writes valid JSON when it must."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    output = OutputSpec(json_schema=json.dumps(schema).encode())
    outcome = await answer_one(engine, ticket(output=output, max_tokens=100, temperature=0))
    assert outcome.answer is not None
    value = json.loads(outcome.answer.text)
    assert set(value) == {"n", "ok"}
    assert value["n"] in range(10)


async def test_a_request_may_bring_a_schema_of_its_own(engine: VllmInprocEngine) -> None:
    """`response_format` works as with OpenAI."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    outcome = await answer_one(engine, ticket(response_format=form, max_tokens=60))
    assert outcome.answer is not None
    assert set(json.loads(outcome.answer.text)) == {"ok"}


async def test_a_schema_that_cannot_be_a_grammar_is_a_bad_request(engine: VllmInprocEngine) -> None:
    """And the engine lives on."""
    bad = OutputSpec(json_schema=b'{"type": "object", "properties": {"a": {"type": "nonsense"}}}')
    assert kind(await answer_one(engine, ticket(1, output=bad))) == "bad_request"
    assert kind(await answer_one(engine, ticket(2))) == "ok"


async def test_a_schema_beyond_the_engines_limits_is_a_bad_request(engine: VllmInprocEngine) -> None:
    """It would fail again, so it isn't tried again; the engine lives on."""
    huge = {"type": "object", "properties": {str(n): {"type": "string"} for n in range(3000)}}
    output = OutputSpec(json_schema=json.dumps(huge).encode())
    assert kind(await answer_one(engine, ticket(1, output=output, max_tokens=50))) == "bad_request"
    assert kind(await answer_one(engine, ticket(2))) == "ok"


async def test_sampling_parameters_belong_to_the_item(engine: VllmInprocEngine) -> None:
    """Ceilings, seeds, temperatures, stops and several completions, side by side in one batch."""
    lengths = {n: ticket(n, json_body(n, max_tokens=n + 1, ignore_eos=True)) for n in range(4)}
    seeded = {n: ticket(n, json_body(99, seed=7, temperature=1.0, ignore_eos=True)) for n in (10, 11)}
    several = {20: ticket(20, json_body(20, n=3, temperature=1.0, ignore_eos=True))}
    found = await answer_all(engine, [*lengths.values(), *seeded.values(), *several.values()])
    assert [found[f"item{n}"].usage.output for n in range(4)] == [1, 2, 3, 4]  # type: ignore[union-attr]
    assert found["item10"].answer.text == found["item11"].answer.text  # type: ignore[union-attr]
    three = json.loads(found["item20"].answer.body_json)  # type: ignore[union-attr]
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["completion_tokens"] == 24


def json_body(number: int, /, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"number {number}"}], **fields}


async def test_log_probabilities_come_when_asked_for(engine: VllmInprocEngine) -> None:
    """In OpenAI's form, with the alternatives."""
    outcome = await answer_one(engine, ticket(logprobs=True, top_logprobs=3, ignore_eos=True))
    assert outcome.answer is not None
    content = json.loads(outcome.answer.body_json)["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    assert all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in content)
    # Without this, vLLM calls a C++ compiler here; where there was none, the engine died of the first such request.
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"


async def test_the_calls_ceiling_stands_where_the_request_has_none(engine: VllmInprocEngine) -> None:
    """No request runs without an end."""
    outcome = await answer_one(engine, ticket(max_tokens=6, ignore_eos=True))
    assert outcome.usage is not None
    assert outcome.usage.output == 6


async def test_an_answer_is_cut_to_what_is_left_of_the_context(engine: VllmInprocEngine) -> None:
    """A ceiling beyond the context is no reason to refuse."""
    outcome = await answer_one(engine, ticket(max_tokens=100_000, ignore_eos=True))
    assert outcome.usage is not None
    assert outcome.usage.input + outcome.usage.output == CONTEXT


@pytest.mark.parametrize("size", [600, 1_000_000])
async def test_a_prompt_longer_than_the_context_is_too_long(engine: VllmInprocEngine, size: int) -> None:
    """By a little or by a lot."""
    body = {"messages": [{"role": "user", "content": "a" * size}]}
    assert kind(await answer_one(engine, ticket(body=body))) == "too_long"


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b'{"messages": []}',
        b'{"messages": "hello"}',
        b'{"messages": [1]}',
        b'{"messages": [{"role": "narrator", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": "warm"}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": -1}',
        b'{"messages": [{"role": "user", "content": "x"}], "top_p": 7}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 100000}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 2, "temperature": 0}',
        b'{"messages": [{"role": "user", "content": "x"}], "chat_template": "{% for a in range(9**9) %}{% endfor %}"}',
        b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"9999999": 5}}',
        b'{"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 99999}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -5}',
        b'{"messages": [{"role": "user", "content": "x"}], "structured_outputs": {"regex": "("}}',
        b'{"messages": [{"role": "user", "content": "x"}], "structured_outputs": {"grammar": "root ::= nowhere"}}',
        b'{"messages": [{"role": "user", "content": "x"}], "allowed_token_ids": [99999999]}',
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f"}}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}]}',
        b'{"messages": [{"role": "user", "content": ' + b"[" * 5000 + b"]" * 5000 + b"}]}",
    ],
)
async def test_a_bad_request_is_data(engine: VllmInprocEngine, body: bytes) -> None:
    """It ends as `bad_request`, with words that name the fault; the engine answers the next."""
    outcome = await answer_one(engine, ticket(1, body))
    assert kind(outcome) == "bad_request"
    assert outcome.failure is not None
    assert len(outcome.failure.message) > 10
    assert kind(await answer_one(engine, ticket(2))) == "ok"


async def test_what_is_aborted_ends_as_cancelled(engine: VllmInprocEngine) -> None:
    """In the engine or before it; the others go on."""
    tickets = [ticket(n, max_tokens=400, ignore_eos=True) for n in range(30)]
    engine.submit(tickets)
    engine.abort(tickets[::2])
    found: dict[str, Outcome] = {}
    while len(found) < 30:
        found |= {outcome.item_id: outcome for _, outcome in await engine.outcomes()}
    assert [kind(found[f"item{n}"]) for n in range(0, 30, 2)] == ["cancelled"] * 15
    assert [kind(found[f"item{n}"]) for n in range(1, 30, 2)] == ["ok"] * 15


async def test_nothing_is_sent_when_the_right_has_lapsed(engine: VllmInprocEngine) -> None:
    """A worker that was stopped for a while asks again instead."""
    assert kind(await answer_one(engine, ticket(until=time.time() - 1))) == "not_sent"


async def test_a_call_that_takes_too_long_ends_as_timeout(engine: VllmInprocEngine) -> None:
    """Its place goes to the next."""
    outcome = await answer_one(engine, ticket(max_tokens=500, ignore_eos=True, timeout_s=0.0))
    assert kind(outcome) == "timeout"


async def test_room_is_a_little_more_than_the_engine_runs(engine: VllmInprocEngine) -> None:
    """So it is kept full, and holds little that another worker could do."""
    assert engine.room() == SEATS * 3 // 2 + 1
    tickets = [ticket(n) for n in range(SEATS * 2)]
    engine.submit(tickets)
    assert engine.room() == 0
    found = 0
    while found < len(tickets):
        found += len(await engine.outcomes())
    assert engine.room() == SEATS * 3 // 2 + 1


async def test_equal_beginnings_are_cached(engine: VllmInprocEngine) -> None:
    """Prefix caching is on, and the usage says what it saved."""
    body = {"messages": [{"role": "user", "content": "the same beginning " * 4}]}
    await answer_one(engine, ticket(1, body))
    again = await answer_one(engine, ticket(2, body))
    assert again.usage is not None
    assert again.usage.cached >= 64


async def test_gauges_tell_what_a_gpu_hour_bought(engine: VllmInprocEngine) -> None:
    """Tokens, busy seconds, load seconds; and progress, by which a hang is seen."""
    before = engine.gauges()
    await answer_one(engine, ticket(max_tokens=10, ignore_eos=True))
    after = engine.gauges()
    assert after["output_tokens"] - before["output_tokens"] == 10
    assert after["progress"] - before["progress"] >= 10
    assert after["finished"] - before["finished"] == 1
    assert after["busy_s"] > before["busy_s"]
    assert 0 < after["busy_s"] <= after["up_s"]
    assert after["load_s"] > 0


def test_an_unknown_engine_setting_names_the_nearest() -> None:
    """Before anything is loaded where it can be, and never in silence."""
    from penstock.workers.engines.vllm_settings import engine_args, settings

    model = tiny(max_num_seq=4)
    with pytest.raises(SpecError, match="did you mean max_num_seqs"):
        engine_args(settings(model, model.live_version, gpu=False), "tiny")


def test_settings_that_belong_elsewhere_say_where() -> None:
    """The model's path is the version's."""
    from penstock.workers.engines.vllm_settings import settings

    model = tiny(model="other")
    with pytest.raises(SpecError, match="version's `model`"):
        settings(model, model.live_version, gpu=False)


async def test_a_model_that_cannot_load_is_a_dead_engine(quiet: None, tmp_path: Path) -> None:
    """The reason is told to whoever started it."""
    model = Model(name="none", versions=(Version("v1", str(tmp_path)),), live="v1", worker="vllm")
    with pytest.raises(EngineDead, match="can't load"):
        await VllmInprocEngine(model, model.live_version).start()


async def test_an_exception_from_a_step_kills_the_engine_and_says_what_was_in_flight(engine: VllmInprocEngine) -> None:
    """vLLM is mute for ever after one; the shell reports the tickets and ends the process. (Last: it kills.)"""
    tickets = [ticket(n, max_tokens=200, ignore_eos=True) for n in range(5)]
    # A poisoned request, as a missing adapter was in fact: the scheduler trips over it.
    engine._engine.engine_core.engine_core.scheduler.schedule = None
    engine.submit(tickets)
    with pytest.raises(EngineDead, match="died in a step"):
        await drain(engine)
    assert set(engine.held()) == set(tickets)
    assert engine.room() == 0
