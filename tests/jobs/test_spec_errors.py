"""Whatever a person may write: a `SpecError` with file, line and nearest name, and never a key in it."""
# ruff: noqa: E501 - the tables of mistakes read better with one mistake a line

from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.engine.errors import SpecError
from penstock.jobs import spec
from penstock.jobs.evals.asked import read_variant
from penstock.jobs.spec import fields

BASE = """\
source: messages.csv
prompt: "{{ text }}"
models: [sandbox/a, sandbox/b]
sinks: out.jsonl
"""
KEY = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"


def load(folder: Path, text: str | bytes, **sets: str) -> object:
    path = folder / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return spec.load(path, sets=sets)


def refused(folder: Path, text: str | bytes, **sets: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(folder, text, **sets)
    return str(caught.value).removeprefix(f"{folder}/")


CASES = {
    "unknown field": ("promt: x", "job.yaml:5: promt: unknown field; did you mean `prompt`?"),
    "unknown field deep": (
        "output: {choice: [a]}",
        "job.yaml:5: output.choice: unknown field; did you mean `choices`?",
    ),
    "half a field's name": (
        "connections: {c: {bootstrap: 'k:9092', ssl_ca: ca.pem}}",
        "connections.c.ssl_ca: unknown field; did you mean `ssl_ca_location`?",
    ),
    "duplicate key": ("prompt: x", "job.yaml:5: `prompt` stands here twice; keep one"),
    "wrong type": ("sample: lots", "job.yaml:5: sample: expected a number, found text"),
    "wrong type in a task": (
        "rules:\n  - {when: {tier: 1}, use: sandbox/a}",
        "job.yaml:6: rules[0].use: expected a list, found text",
    ),
    "wrong word": ("shape: row", "job.yaml:5: shape: `row` is not known here; did you mean `rows`?"),
    "arm of an unknown version": (
        "experiments: [{name: e, arms: [{name: a}, {name: b, version: sandbox/a@v9}]}]",
        "job.yaml:5: experiments[0].arms[1].version: model sandbox/a has no version `v9`",
    ),
    "arm of no version": (
        "experiments: [{name: e, arms: [{name: a}, {name: b, version: v2}]}]",
        "job.yaml:5: experiments[0].arms[1].version: expected `model@version`, such as `small@v2`, not `v2`",
    ),
    "one arm": (
        "experiments: [{name: e, arms: [{name: a}]}]",
        "job.yaml:5: experiments[0].arms: wants 2 to 10 arms, found 1",
    ),
    "arms of one name": (
        "experiments: [{name: e, arms: [{name: a}, {name: a}]}]",
        "job.yaml:5: experiments[0].arms: two arms have the same name",
    ),
    "experiment on an unknown task": (
        "experiments: [{name: e, task: defalt, arms: [{name: a}, {name: b}]}]",
        "job.yaml:5: experiments[0].task: no task `defalt`; did you mean `default`?",
    ),
    "arm of an unknown model": (
        "experiments: [{name: e, arms: [{name: a}, {name: b, model: sandbx/a}]}]",
        "job.yaml:5: experiments[0].arms[1].model: no model `sandbx/a`; did you mean `sandbox/a`?",
    ),
    "two experiments on one task": (
        "experiments: [{name: e, arms: [{name: a}, {name: b}]}, {name: f, arms: [{name: a}, {name: b}]}]",
        "job.yaml:5: experiments[1].task: the task `default` is in another experiment already",
    ),
    "unknown tier in a rule": (
        "rules: [{when: {tier: 1}, tier: 7}]",
        "job.yaml:5: rules[0].tier: no tier 7; there are",
    ),
    "rule to unknown model": (
        "rules: [{when: {tier: 1}, use: [sandbx/a]}]",
        "rules[0].use[0]: no model `sandbx/a`; did you mean `sandbox/a`?",
    ),
    "rule on unknown attribute": (
        "rules: [{when: {taks: x}, tier: 1}]",
        "taks: no attribute of an item; did you mean `task`",
    ),
    "rule on unknown task": ("rules: [{when: {task: defalt}, tier: 1}]", "no task `defalt`; did you mean `default`?"),
    "rule with unknown comparison": (
        "rules: [{when: {tier: {les: 1}}, tier: 1}]",
        "rules[0].when.tier.les: no comparison; did you mean",
    ),
    "rule that decides nothing": ("rules: [{when: {tier: 1}}]", "decides nothing; add `use:`"),
    "rule without when": ("rules: [{tier: 1}]", "job.yaml:5: rules[0]: the field `when` is missing"),
    "size of a text": ("rules: [{when: {task: {lt: 1}}, tier: 1}]", "`task` is text; only numbers are compared"),
    "tier to unknown model": ("tiers: {1: [sandbox/c]}", "job.yaml:5: tiers.1[0]: no model `sandbox/c`; did you mean"),
    "tier by a word": ("tiers: {best: [sandbox/a]}", "job.yaml:5: tiers.best: a tier is a whole number"),
    "empty tier": ("tiers: {1: []}", "tiers.1: an empty list"),
    "too few choices": ("output: {choices: [a]}", "output.choices: wants 2 to 1,000 choices, found 1"),
    "equal choices": ("output: {choices: [a, b, a]}", "output.choices[2]: `a` stands here twice"),
    "choices and schema": ("output: {choices: [a, b], json_schema: {}}", "wants exactly one of"),
    "bad schema": (
        "output:\n  json_schema:\n    type: objekt",
        "job.yaml:7: output.json_schema.type: not a valid JSON schema",
    ),
    "schema that fetches": ('output: {json_schema: {"$ref": "http://x.test/s"}}', "nothing is fetched"),
    "parameter of ours": ("params: {model: x}", "params.model: can't be a parameter; its place is models:"),
    "another price": (
        "params: {service_tier: priority}",
        "params.service_tier: can't be sent: it changes what a call costs",
    ),
    "another target": (
        "params: {models: [a/b]}",
        "params.models: can't be sent: it chooses who answers, past the job's",
    ),
    "kept": ("params: {store: true}", "params.store: can't be sent: it has the provider keep the request"),
    "server tool": (
        "params: {tools: [{type: web_search}]}",
        "params.tools: can't be sent: a tool that the provider runs",
    ),
    "bad ceiling": ("params: {max_tokens: 0}", "params.max_tokens: expected a whole number, 1 or more"),
    "bad temperature": ("params: {temperature: hot}", "params.temperature: expected a number from 0 to 2"),
    "bad share": ("sample: 2", "job.yaml:5: sample: expected a share between 0 and 1"),
    "bad scorer": ("scorers: [{type: regex}]", "`pattern` belongs to a scorer of type regex"),
    "bad pattern": (
        "scorers: [{type: regex, pattern: '('}]",
        "scorers[0].pattern: the pattern '(' is no regular expression",
    ),
    "pattern without end": ("scorers: [{type: regex, pattern: '(a+)+$'}]", "repeats a repeat, which can take for ever"),
    "bad function": ("scorers: [{function: nope}]", "scorers[0].function: expected `module:name`"),
    "tasks and shorthand": ("tasks: {a: {prompt: x}}", "job.yaml:2: prompt: stands beside `tasks:`"),
    "bad attribute": ("row: {attributes: {sensitivty: x}}", "did you mean `sensitivity`?"),
    "bad budget": ("budgets: [{usd: -1}]", "job.yaml:5: budgets[0].usd: not an amount in US dollars: negative"),
    "budget too fine": ("budgets: [{usd: 0.00000000001}]", "finer than a nano-dollar"),
    "bad fuse": ("max_dead_letters: 1.5", "expected a count (0, 10) or a share"),
    "bad lanes": ("execution: {lanes: 65}", "execution.lanes: at most 64"),
    "no lanes": ("execution: {lanes: 0}", "execution.lanes: must be 1 or more"),
    "negative time": ("execution: {outage_s: -1}", "execution.outage_s: must be a number of seconds, 0 or more"),
    "listed all the time": ("execution: {discover_s: 0}", "execution.discover_s: must be 1 or more"),
    "unknown execution": ("execution: {lane: 3}", "did you mean `lanes`?"),
    "state elsewhere": (
        "state: kafka://b:9092/x",
        "job.yaml:5: state: kafka:// can't hold the state; name a folder, or s3",
    ),
    "state with an unknown query": (
        "state: s3://bucket/x?regoin=eu",
        "`?regoin=` is not known here; did you mean `region`?",
    ),
    "no catalogue": ("catalog: nowhere.yaml", "job.yaml:5: catalog: no such file"),
    "catalogue by URL": ("catalog: https://x.test/c.yaml", "catalog: expected a path"),
    "hole in a wall": ("walls: {eu: {regions: ['']}}", "walls.eu.regions[0]: empty text in a wall"),
    "public without a wall": (
        "walls: {eu: {}}\nunknown_wall: public",
        "job.yaml:6: unknown_wall: `public` wants a wall",
    ),
    "not finite": ("sample: .nan", "job.yaml:5: a number that is not finite"),
    "infinite by size": ("sample: 1e999", "job.yaml:5: a number too large"),
    "huge number": ("max_attempts: 99999999999999999999999999", "job.yaml:5: a number too large"),
    "tag": ("name: !!python/object:os.system x", "job.yaml:5: YAML tags"),
    "second document": ("---\nname: x", "job.yaml:5: a second document"),
    "template as a mapping": ("row: {id: {{ x }}}", "job.yaml:5: a field name is text"),
    "bad template": ('row: {id: "{{ x"}', "job.yaml:5: row.id: line 1 of the template"),
    "open bracket": ("tasks: [", "not valid YAML"),
    "bare star": ("state: *.csv", 'wants quotes, like "*.csv"'),
    "bare colon": ("name: a: b", "text with `: ` in it wants quotes"),
    "tab": ("a:\n\t- b", "job.yaml:6: not valid YAML"),
    "the same place twice": ("row: {}\nsinks: {results: a.jsonl, costs: a.jsonl}", "`sinks` stands here twice"),
    "null key": ("~: x", "job.yaml:5: a field name is missing"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_tells_line_and_nearest_name(name: str, tmp_path: Path) -> None:
    """One mistake each, added as line 5 of a job that is right."""
    extra, message = CASES[name]
    assert message in refused(tmp_path, BASE + extra + "\n")


def test_a_sink_that_is_written_as_a_source_is_told_of_its_name(tmp_path: Path) -> None:
    text = BASE.replace("sinks: out.jsonl", "sinks: {type: kafka, bootstrap: 'k:9092', topic: out}")
    told = "job.yaml:4: sinks.type: unknown field; each sink stands under its name, like `sinks: {results: {type: …}}`"
    assert refused(tmp_path, text) == told


INSTEAD = {
    "unknown type": ("source: {type: fils, path: x}", "job.yaml:1: source.type: unknown type `fils`; did you mean `files`?"),
    "no type": ("source: {path: x}", "job.yaml:1: source: say its `type:` (files, kafka, s3)"),
    "other URL": ("source: ftp://x/y", "no connector reads ftp://; known: kafka, s3"),
    "unknown field of a source": ("source: {type: files, pth: x}", "source.pth: unknown field; did you mean `path`?"),
    "no path": ("source: {type: files}", "source: the field `path` is missing"),
    "a list": ("source: [a, b]", "job.yaml:1: source: expected text or a mapping, found a list"),
    "empty": ('source: ""', "source: expected a path, found empty text"),
    "undeclared variable": ('source: "{{ vars.dat }}"\nvars: {date: x}', "source: `vars.dat` is not declared"),
    "row's template in a path": ('source: "{{ text }}"', "only {{ vars.NAME }} can stand here"),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTEAD)
def test_a_source_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    """The first line of a job that is right, replaced."""
    line, message = INSTEAD[name]
    assert message in refused(tmp_path, BASE.replace("source: messages.csv", line))


MODELS = {
    "unknown host": ("[antropic/claude]", "models[0]: `antropic` is neither a known host nor an account; did you mean `anthropic`?"),
    "no host": ("[claude]", "models[0]: `claude` is no model of the catalogue; write provider/model"),
    "no models": ("[]", "no model is named"),
    "priced by a name": (
        "[openai/gpt-4o-mini]\naccounts: {openai: {base_url: https://gateway.example/v1, api_key: env:K}}",
        "whether https://gateway.example/v1 charges what openai does for `gpt-4o-mini` is not known",
    ),
    "unpriced": ("[openai/gpt-unheard-of-9]", "the price table does not know `gpt-unheard-of-9` at openai; add `price:"),
    "priced by more than tokens": ("[perplexity/sonar]", "by more than their tokens, and the price table can't tell how much (requests_kcount)"),
    "price of a thousand requests": ("[{name: m, model: perplexity/sonar, price: {input_per_million: 1, output_per_million: 1, per_request: 5}}]",
                                     "models[0].price.per_request: over a dollar a request"),
    "unpriced own server": ("[{name: m, model: x, base_url: 'http://localhost/v1'}]", "or `price: free`"),
    "unknown account": ("[{name: m, account: opnai, model: x}]", "no account `opnai`; did you mean `openai`?"),
    "nowhere": ("[{name: m, model: x}]", "where is it? Say `account:`"),
    "twice": ("[{name: m, worker: vllm, model: x, hour_usd: 1}, {name: m, worker: vllm, model: y, hour_usd: 1}]", "defined twice"),
    "free by silence": ("[{name: m, worker: vllm, model: x}]", "own workers are not free: add `hour_usd"),
    "negative hour": ("[{name: m, worker: vllm, model: x, hour_usd: -1}]", "models[0].hour_usd: negative"),
    "negative price": ("[{name: m, model: openai/x, price: {input_per_million: -1, output_per_million: 1}}]",
                       "models[0].price.input_per_million: not a price in US dollars: negative"),
    "price a token": ("[{name: m, model: openai/x, price: {input_per_million: 5000000, output_per_million: 1}}]", "over a dollar a token"),
    "half a price": ("[{name: m, model: openai/x, price: {input_per_million: 5}}]", "`output_per_million` is missing"),
    "word for a price": ("[{name: m, model: openai/x, price: fre}]", "models[0].price"),
    "no live version": ("[{name: m, worker: vllm, hour_usd: 1, versions: [{id: a, model: x}, {id: b, model: y}]}]", "say which version is live"),
    "unknown live version": ("[{name: m, worker: vllm, hour_usd: 1, live: v11, versions: [{id: v1, model: x}]}]", "models[0].live: no version `v11`; did you mean `v1`?"),
    "replicas": ("[{name: m, worker: vllm, hour_usd: 1, model: x, replicas: {min: 3, max: 2}}]", "needs 0 <= min <= max"),
    "workers without worker": ("[{name: m, model: openai/x, price: free, hour_usd: 1}]", "belongs to a model on own workers"),
    "account twice": ("[{name: m, account: openai, model: x, price: free, base_url: 'https://x.test'}]", "stands in the account `openai` already"),
    "quality": ("[{name: m, worker: vllm, hour_usd: 1, model: x, quality: {a: 82}}]", "models[0].quality.a: a quality is between 0 and 1"),
    "engine type": ("[{name: m, worker: vllm, hour_usd: 1, model: x, engine: {a: [1]}}]", "models[0].engine.a: expected"),
    "limits": ("[{name: m, model: x, price: free, base_url: 'https://x.test', limits: {rpm: 0}}]", "limits.rpm: must be 1 or more"),
    "address": ("[{name: m, model: x, price: free, base_url: 'x.test'}]", "models[0].base_url: not an address"),
    "password in the address": ("[{name: m, model: x, price: free, base_url: 'https://u:p@x.test'}]", "holds a user name or password"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_called_or_billed_is_refused(name: str, tmp_path: Path) -> None:
    """Nobody is billed wrongly because a price was missing."""
    models, message = MODELS[name]
    told = refused(tmp_path, BASE.replace("[sandbox/a, sandbox/b]", models))
    assert message in told
    assert told.startswith("job.yaml:")


@pytest.mark.parametrize(
    "text",
    [
        f"[{{name: m, model: x, price: free, base_url: 'https://x.test', api_key: {KEY}}}]",
        f"[{{name: m, model: x, price: free, base_url: 'https://x.test', api_key: 'env:{KEY}'}}]",
        f"[{{name: m, model: x, price: free, base_url: 'https://x.test', api_key: ['{KEY}']}}]",
        f"[{{name: m, model: x, price: free, base_url: 'https://x.test', {KEY}: 1}}]",
        f"[{{name: m, model: x, price: free, base_url: 'https://{KEY}@x.test'}}]",
        f"[{{name: m, model: x, price: {KEY}, base_url: 'https://x.test'}}]",
        f"[{{name: m, account: {KEY}, model: x}}]",
        f"[{KEY}]",
        f"[openai/{KEY}]",
        f"[{{api_key: {KEY}, api_key: {KEY}}}]",
        f"[{{api_key: {KEY}",
        f"[*{KEY}]",
        f"[!{KEY} x]",
    ],
)
def test_no_error_shows_a_key(text: str, tmp_path: Path) -> None:
    """A key written where it must not stand is refused, and not repeated on a screen or in a log."""
    told = refused(tmp_path, BASE.replace("[sandbox/a, sandbox/b]", text))
    assert "abcdefghij" not in told


def test_a_literal_key_is_refused_whatever_it_looks_like(tmp_path: Path) -> None:
    """Only references pass: `env:NAME`, `file:/path`."""
    for key in ("hunter2", "env:", "env:a b", "file:relative", "http://x", "ENV:X"):
        models = f"[{{name: m, model: x, price: free, base_url: 'https://x.test', api_key: '{key}'}}]"
        told = refused(tmp_path, BASE.replace("[sandbox/a, sandbox/b]", models))
        assert "models[0].api_key: name the key, never write it" in told
        assert "hunter2" not in told


def test_a_known_hosts_key_goes_to_that_host_only(tmp_path: Path) -> None:
    """An account named like a host, at another address, gets no key that it does not ask for."""
    text = BASE.replace("[sandbox/a, sandbox/b]", "[openai/gpt-4o-mini]")
    accounts = "accounts: {openai: {base_url: 'https://elsewhere.test/v1', provider: openai}}\n"
    made = spec.load(_written(tmp_path, text + accounts))
    assert made.catalog.accounts["openai"].api_key is None


@pytest.mark.parametrize("here", ["127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000"])
def test_a_rehearsal_on_this_machine_has_the_prices_of_the_real_host(here: str, tmp_path: Path) -> None:
    """A job runs against a server of one's own with its addresses replaced and nothing else."""
    text = BASE.replace("[sandbox/a, sandbox/b]", "[openai/gpt-4o-mini]")
    made = spec.load(_written(tmp_path, text + f"accounts: {{openai: {{base_url: 'http://{here}/v1'}}}}\n"))
    (model,) = made.catalog.models.values()
    assert model.live_version.price is not None


def _written(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_a_mistake_in_the_catalogue_names_the_catalogue(tmp_path: Path) -> None:
    """File and line are those of the file that is wrong."""
    (tmp_path / "catalog.yaml").write_text("walls:\n  eu:\n    region: [eu]\n")
    told = refused(tmp_path, BASE + "catalog: catalog.yaml\n")
    assert told == "catalog.yaml:3: walls.eu.region: unknown field; did you mean `regions`?"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("walls: {health: {}}", "job.yaml:6: walls.health: this wall is defined in the catalogue"),
        ("unknown_wall: public\nwalls: {public: {}}", "job.yaml:6: unknown_wall: the catalogue says otherwise"),
        (
            "accounts: {us: {base_url: 'https://x.test', regions: [eu]}}",
            "job.yaml:6: accounts.us: this account is defined",
        ),
    ],
)
def test_a_job_cannot_bend_the_companys_walls(extra: str, message: str, tmp_path: Path) -> None:
    """A wall that a job could redefine would be none."""
    (tmp_path / "catalog.yaml").write_text(
        "walls: {health: {self_hosted: true}}\nunknown_wall: refuse\n"
        "accounts: {us: {base_url: 'https://x.test', regions: [us]}}\n"
    )
    assert message in refused(tmp_path, BASE + "catalog: catalog.yaml\n" + extra + "\n")


@pytest.mark.parametrize("url", ["http://api.openai.com/v1", "HTTP://eu.api.openai.com/v1"])
def test_a_known_host_is_not_asked_in_the_clear(url: str, tmp_path: Path) -> None:
    """It would answer with the way to its https address, and by then everybody between has read key and prompt."""
    told = refused(tmp_path, BASE + f"accounts: {{mine: {{base_url: '{url}'}}}}\n")
    assert told.startswith("job.yaml:5: accounts.mine.base_url: `openai` is reached by https://")
    carried = f"- {{name: m, model: gpt-4o, base_url: '{url}'}}\n"
    assert "is reached by https://" in refused(
        tmp_path, BASE.replace("models: [sandbox/a, sandbox/b]", f"models:\n{carried}")
    )


@pytest.mark.parametrize(
    "model", ["{name: safe, account: openai, model: gpt-4o, regions: [us], no_train: true}", "openai/gpt-4o"]
)
def test_a_job_cannot_lead_the_catalogues_models_to_another_host(model: str, tmp_path: Path) -> None:
    """What the catalogue says of regions and training is the known host's, and so are the prices: by an account of the
    host's name the job would send what the walls let through to whom it likes. A key and limits it may bring."""
    (tmp_path / "catalog.yaml").write_text(f"models: [{model}]\nwalls: {{careful: {{no_train: true}}}}\n")
    for url in ("https://elsewhere.example/v1", "https://api.openai.com.elsewhere.example"):
        own = f"accounts: {{openai: {{base_url: '{url}', provider: openai}}}}\n"
        told = refused(tmp_path, BASE + "catalog: catalog.yaml\n" + own)
        assert told.startswith("job.yaml:6: accounts.openai: models of the catalogue are at the known host `openai`")
    for own in (
        "{api_key: 'env:OURS'}",
        "{base_url: 'https://eu.api.openai.com/v1'}",
        "{base_url: 'http://127.0.0.1:9'}",
    ):
        spec.load(_written(tmp_path, BASE + f"catalog: catalog.yaml\naccounts: {{openai: {own}}}\n"))


def test_variables_are_required_known_and_bounded(tmp_path: Path) -> None:
    """`--set` mistakes are told with the nearest name."""
    text = BASE + "vars: {date: required}\n"
    assert "vars.date: has no value; add --set date=…" in refused(tmp_path, text)
    assert "--set dat: the job has no such variable; did you mean `date`?" in refused(tmp_path, text, date="1", dat="2")
    assert "at most 1,000 characters" in refused(tmp_path, text, date="x" * 1_001)


def test_a_table_needs_a_prompt(tmp_path: Path) -> None:
    """A row of a CSV file is no request."""
    assert "rows of a table need a `prompt:`" in refused(tmp_path, BASE.replace('prompt: "{{ text }}"', "sample: 0"))


@pytest.mark.parametrize(
    ("source", "sinks"),
    [
        ("data.jsonl", "data.jsonl"),
        ("data", "data/results.jsonl"),
        ("data/", "data/out/"),
        ("*.jsonl", "results.jsonl"),
        ("data/**/*.jsonl", "data/a/b/results.jsonl"),
        ("data/**", "data/out/"),
        (".", "out/"),
        ("data/*/*.jsonl", "data/labels/"),
        ("data/**/*.jsonl", "data/labels"),
        ("data/**/*.json", "data/labels/"),
    ],
)
def test_a_sink_inside_the_input_is_refused(source: str, sinks: str, tmp_path: Path) -> None:
    """The next run would read its own results, or the input would be written over."""
    (tmp_path / "data").mkdir()
    text = BASE.replace("messages.csv", f"'{source}'").replace("out.jsonl", sinks)
    assert "would stand inside the source" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("source", "state", "meet"),
    [
        ("data/", "data/state/", True),
        ("data", "data", True),
        ("data/**", "data/a/state", True),
        ("data/**/*.jsonl", "data/state", True),
        ("data/*.jsonl", "data/state", False),
        ("data/**/*.csv", "data/state", False),
        ("data/", "data/.penstock/", False),
        ("**/*.json", ".penstock/", False),
        ("data/", "state/", False),
    ],
)
def test_a_state_inside_the_input_is_refused(source: str, state: str, meet: bool, tmp_path: Path) -> None:
    """Its documents are JSON: rows to a run that reads all there is. A hidden one is not read."""
    (tmp_path / "data").mkdir()
    text = BASE.replace("messages.csv", f"'{source}'").replace("out.jsonl", "labels.csv") + f"\nstate: {state}\n"
    if meet:
        assert "would stand inside the source" in refused(tmp_path, text)
    else:
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("source", "sinks"),
    [
        ("in/*.jsonl", "out/results.jsonl"),
        ("*.csv", "results.jsonl"),
        ("data/*.jsonl", "data/out/r.jsonl"),
        ("data/**/in.jsonl", "data/out/"),
        ("data/*/*.csv", "data/out/"),
    ],
)
def test_a_sink_beside_the_input_is_fine(source: str, sinks: str, tmp_path: Path) -> None:
    """Only what a listing would find is refused."""
    load(tmp_path, BASE.replace("messages.csv", f"'{source}'").replace("out.jsonl", sinks))


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Half a character, from a program or a command line."""
    with pytest.raises(SpecError, match="UTF-8"):
        spec.from_mapping({"source": "a.jsonl", "models": ["sandbox/a"], "sinks": "o/", "name": "\ud800"}, tmp_path)
    assert "UTF-8 text" in refused(tmp_path, BASE + "vars: {x: required}", x="\udcff")
    with pytest.raises(SpecError, match="stands here twice"):
        spec.from_mapping({"source": "a.jsonl", "tiers": {1: [], "1": []}}, tmp_path)


def test_files_that_are_no_job_are_refused(tmp_path: Path) -> None:
    """Nothing, a list, a picture, a folder, a missing file."""
    assert "expected fields like" in refused(tmp_path, "")
    assert "found a list" in refused(tmp_path, "- a\n- b\n")
    assert "not UTF-8" in refused(tmp_path, b"name: x\nsource: \xff\xfe\n")
    assert "job.yaml:2" in refused(tmp_path, b"name: x\nsource: \xff\xfe\n")
    assert "not valid YAML" in refused(tmp_path, "a: \x00")
    with pytest.raises(SpecError, match="can't be read: No such file"):
        spec.load(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="can't be read"):
        spec.load(tmp_path)


def test_size_depth_and_aliases_are_bounded(tmp_path: Path) -> None:
    """A bomb is refused at once, and says why."""
    assert "at most 1,000,000 are read" in refused(tmp_path, "#" * 1_000_001)
    assert "nest" in refused(tmp_path, "a: " + "[" * 10_000)
    assert "nested deeper than 50" in refused(tmp_path, "a:\n" + "".join(" " * i + "- \n" for i in range(1, 900)))
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
    assert "aliases count in full" in refused(tmp_path, laughs)
    assert "levels (aliases count in full)" in refused(tmp_path, "a: &a [*a]\n")


def test_a_bom_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    """What an editor on Windows writes."""
    load(tmp_path, b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())


WORDS = [
    *fields.JobFile.__struct_fields__,
    *fields.ModelFile.__struct_fields__,
    *fields.TaskFile.__struct_fields__,
    *(
        "type",
        "files",
        "kafka",
        "s3",
        "topics",
        "bootstrap",
        "connection",
        "bucket",
        "path",
        "choices",
        "when",
        "use",
        "lt",
        "all",
        "results",
        "usd",
        "{{ text }}",
    ),
    *("sandbox/a", "openai/gpt-4o-mini", "x.jsonl", "vllm", "free", "{{ vars.x }}", "1", "exact", "required"),
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(string.printable, max_size=12),
)
trees: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda child: (
        st.lists(child, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=6), child, max_size=5)
    ),
    max_leaves=25,
)
calm = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def survives(folder: Path, text: str | bytes) -> None:
    with suppress(SpecError):
        load(folder, text)


@calm
@given(st.dictionaries(st.sampled_from(fields.JobFile.__struct_fields__), trees, max_size=6))
def test_any_tree_gives_a_spec_or_a_spec_error(tmp_path: Path, tree: dict[str, Any]) -> None:
    """Right names, any values."""
    base = {"source": "a.jsonl", "models": ["sandbox/a"], "sinks": "out/"}
    survives(tmp_path, yaml.safe_dump({**base, **tree}, allow_unicode=True).encode("utf-8", "surrogateescape"))
    with suppress(SpecError):
        spec.from_mapping({**base, **tree}, tmp_path)


@calm
@given(st.binary(max_size=300) | st.text("abc:-[]{}&*!|>'\"%@`#,?\n\t \x00~<=0.", max_size=80))
def test_any_bytes_give_a_spec_error(tmp_path: Path, text: str | bytes) -> None:
    """Not even YAML."""
    survives(tmp_path, text)


@calm
@given(st.integers(0, len(BASE)), st.text(max_size=4), st.integers(0, 5))
def test_a_damaged_job_gives_a_spec_or_a_spec_error(tmp_path: Path, at: int, extra: str, cut: int) -> None:
    """A good job with a few characters replaced."""
    survives(tmp_path, (BASE[:at] + extra + BASE[at + cut :]).encode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("out.jsonl.gz", "job.yaml:4: sinks: sinks are written uncompressed: 'out.jsonl' without `.gz`"),
        ("out.csv.zst", "sinks are written uncompressed"),
        ("out.xlsx", "job.yaml:4: sinks: `.xlsx` names no format that is written (.jsonl, .ndjson, .json, .csv, .parquet); a folder ends in `/`"),
        ("{type: files, path: a.txt}", "sinks.path: `.txt` names no format"),
    ],
)  # fmt: skip
def test_a_sinks_name_does_not_promise_what_is_not_written(tmp_path: Path, path: str, told: str) -> None:
    """No JSON lines in a file that says it is gzip, or a workbook."""
    sinks = f"{{results: {path}}}" if path.startswith("{") else path
    text = refused(tmp_path, BASE.replace("out.jsonl", sinks))
    assert told.replace("sinks.path", "sinks.results.path") in text
    load(tmp_path, BASE.replace("out.jsonl", "{results: {type: files, path: a.txt, format: csv}}"))
    load(tmp_path, BASE.replace("out.jsonl", "out.v1/"))


def test_a_variant_of_an_evaluation_chooses_no_other_price(tmp_path: Path) -> None:
    """Its params are sent like a task's."""
    file = tmp_path / "fast.yaml"
    file.write_text("params: {service_tier: priority}")
    with pytest.raises(SpecError, match="the parameter service_tier can't be sent: it changes what a call costs"):
        read_variant(str(file))
