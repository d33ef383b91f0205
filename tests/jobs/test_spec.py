"""A job file becomes what a cluster needs to know of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from penstock.connectors.settings import FilesSink, FilesSource
from penstock.engine.catalog import Limits, Model, Price
from penstock.engine.errors import SpecError
from penstock.engine.policy import Condition
from penstock.engine.pricing import price_of
from penstock.jobs import spec
from penstock.jobs.prices import table_price
from penstock.jobs.spec.describe import moving_versions, price_text
from penstock.workers.runspec import RunSpec

USD = 1_000_000_000

MINIMAL = """
source: messages.csv
prompt: "Which department handles this message? {{ text }}"
output: {choices: [delivery, billing, product, other]}
models: [anthropic/claude-haiku-4-5]          # provider/model: a known host and its usual key variable
sinks: labels.parquet
"""

CATALOG = """
accounts:
  anthropic: {protocol: anthropic, base_url: "https://api.anthropic.com", api_key: "env:ANTHROPIC_API_KEY",
              regions: [us], no_train: true,
              limits: {rpm: 4000, input_tpm: 2000000, output_tpm: 400000, concurrency: 256}}
  groq: {protocol: openai, base_url: "https://api.groq.com/openai/v1", api_key: "env:GROQ_API_KEY", regions: [us]}
models:
  - {name: opus, account: anthropic, model: claude-opus-4-6, origin: us,
     price: {input_per_million: 5, output_per_million: 25}}
  - {name: groq-llama, account: groq, model: llama-3.3-70b-versatile, latency: realtime, origin: us, licence: llama}
  - {name: small, worker: vllm, hour_usd: 0.10, replicas: {min: 1, max: 2},
     engine: {max_model_len: 1024, max_num_seqs: 64, enforce_eager: true},
     regions: [eu], origin: us,
     live: v1, versions: [{id: v1, model: HuggingFaceTB/SmolLM2-135M-Instruct, revision: main}],
     quality: {classification: 0.82}}
tiers: {1: [opus], 2: [groq-llama, small], 3: [small, groq-llama]}
walls:
  public: {}
  eu-only: {regions: [eu]}
  health: {self_hosted: true, origin: [us, eu], sample: redact}
unknown_wall: refuse
"""

WHOLE = """
name: label-messages
catalog: catalog.yaml
vars: {date: required}
source: {type: files, path: "in/{{ vars.date }}/*.jsonl"}
row:
  id: "{{ order_id }}"
  keep: [order_id, shop]
  attributes: {task: "{{ kind }}", sensitivity: "{{ class }}", subject: "{{ customer }}", unit: "{{ customer }}"}
tasks:
  classification:
    tier: 3
    min_quality: 0.8
    prompt: {system: Label messages for a shop., user: "{{ text }}"}
    output: {choices: [delivery, billing, product, other], on_invalid: ask_again}
    params: {max_tokens: 8, temperature: 0}
    sample: 0.02
    scorers: [{type: exact, expected: "{{ label }}"}]
  coding: {tier: 1, prompt: "{{ text }}"}
rules:
  - {when: {task: coding, latency: realtime}, use: [groq-llama, opus]}
  - {when: {max_cost_usd: {lt: 0.001}}, tier: 3}
sinks:
  results: {type: files, path: "out/{{ vars.date }}/results.jsonl"}
  costs: {type: files, path: "out/{{ vars.date }}/costs.jsonl"}
budgets: [{usd: 25}, {usd: 100, per: day, tenant: "*"}]
max_dead_letters: 0.01
state: .penstock/
"""


def job(folder: Path, text: str, **sets: str) -> RunSpec:
    (folder / "job.yaml").write_text(text)
    return spec.load(folder / "job.yaml", sets=sets)


@pytest.fixture
def whole(tmp_path: Path) -> RunSpec:
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    (tmp_path / "label-messages.yaml").write_text(WHOLE)
    return spec.load(tmp_path / "label-messages.yaml", sets={"date": "2026-11-24"})


def test_the_smallest_job_is_whole(tmp_path: Path) -> None:
    """Five lines: the host, its key variable, its price, every tier and every sink follow from them."""
    made = job(tmp_path, MINIMAL)
    assert made.source == FilesSource(str(tmp_path / "messages.csv"))
    account = made.catalog.accounts["anthropic"]
    assert (account.protocol, account.base_url, account.api_key) == (
        "anthropic",
        "https://api.anthropic.com",
        "env:ANTHROPIC_API_KEY",
    )
    model = made.catalog.models["anthropic/claude-haiku-4-5"]
    assert model.live_version.model == "claude-haiku-4-5"
    price = price_of(model, model.live)
    assert price is not None
    assert price.version.startswith("genai-prices ")
    assert set(made.catalog.tiers.values()) == {("anthropic/claude-haiku-4-5",)}
    assert made.policy.default_task == "default"
    assert made.policy.tasks["default"].output is not None
    assert made.name == "job"


def test_unnamed_sinks_stand_beside_the_results(tmp_path: Path) -> None:
    """Parquet beside Parquet, but dead letters are JSON lines: they hold what could not be read."""
    sinks = job(tmp_path, MINIMAL).sinks
    assert sinks == {
        "results": FilesSink(str(tmp_path / "labels.parquet")),
        "costs": FilesSink(str(tmp_path / "labels.costs.parquet")),
        "quality": FilesSink(str(tmp_path / "labels.quality.parquet")),
        "dead_letters": FilesSink(str(tmp_path / "labels.dead_letters.jsonl")),
    }


@pytest.mark.parametrize(
    ("results", "costs"),
    [
        ("out/", "out.costs/"),
        ("out", "out.costs/"),
        ("results.jsonl", "results.costs.jsonl"),
        ("results.csv", "results.costs.jsonl"),
    ],
)
def test_a_folder_has_folders_beside_it(tmp_path: Path, results: str, costs: str) -> None:
    """Results in part files: so are the others."""
    made = job(tmp_path, MINIMAL.replace("labels.parquet", results))
    assert made.sinks["costs"] == FilesSink(f"{tmp_path}/{costs}")


def test_the_whole_job_of_the_documentation_reads(whole: RunSpec, tmp_path: Path) -> None:
    """Every field that the documentation shows arrives where it belongs."""
    assert whole.name == "label-messages"
    assert whole.vars == {"date": "2026-11-24"}
    assert whole.source == FilesSource(f"{tmp_path}/in/2026-11-24/*.jsonl")
    assert whole.row.keep == ("order_id", "shop")
    assert whole.row.attributes["sensitivity"] == "{{ class }}"
    assert whole.sinks["results"] == FilesSink(f"{tmp_path}/out/2026-11-24/results.jsonl")
    assert whole.sinks["quality"] == FilesSink(f"{tmp_path}/out/2026-11-24/results.quality.jsonl")
    assert [(b.limit_nano, b.per, b.tenant) for b in whole.budgets] == [
        (25 * USD, None, None),
        (100 * USD, "day", "*"),
    ]
    assert whole.max_dead_letters == 0.01
    assert whole.state == f"{tmp_path}/.penstock"
    assert whole.on_duplicate == "dead_letter"


def test_a_declared_price_may_have_a_part_for_each_request(tmp_path: Path) -> None:
    """Perplexity's searches: half a cent a call beside its tokens, and the description says so."""
    price = {"input_per_million": 1, "output_per_million": 1, "per_request": 0.005}
    job = {
        "source": "x.jsonl",
        "prompt": "{{ text }}",
        "sinks": "o.jsonl",
        "models": [{"name": "m", "model": "perplexity/sonar", "price": price}],
    }
    (tmp_path / "x.jsonl").write_text('{"text":1}\n')
    made = spec.from_mapping(job, str(tmp_path))
    assert made.catalog.models["m"].price == Price(input=USD, output=USD, per_request=5_000_000)
    assert price_text(made.catalog.models["m"].price) == "$1 in, $1 out per million tokens, $0.005 a request (declared)"


def test_a_model_may_lack_capabilities_and_parameters(tmp_path: Path) -> None:
    """So that it can share a task with models that take them."""
    named = "models: [{name: gpt, account: openai, model: gpt-5, lacks: [images, json_schema, temperature, top_p]}]"
    made = job(tmp_path, MINIMAL.replace("models: [anthropic/claude-haiku-4-5]", named))
    assert made.catalog.models["gpt"].lacks == ("images", "json_schema", "temperature", "top_p")


def test_the_catalogue_holds_accounts_models_tiers_and_walls(whole: RunSpec) -> None:
    """Limits, declared prices, own workers and their versions."""
    catalog = whole.catalog
    assert catalog.accounts["anthropic"].limits == Limits(rpm=4000, input_tpm=2000000, output_tpm=400000)
    assert catalog.models["opus"].price == Price(input=5 * USD, output=25 * USD)
    assert catalog.models["opus"].no_train
    assert catalog.models["groq-llama"].latency == "realtime"
    small = catalog.models["small"]
    assert (small.worker, small.hour_usd, small.max_replicas, small.context) == ("vllm", 0.10, 2, 1024)
    assert small.pool == "vllm:small@v1"
    assert catalog.tiers == {1: ("opus",), 2: ("groq-llama", "small"), 3: ("small", "groq-llama")}
    assert catalog.walls["health"].self_hosted
    assert catalog.walls["health"].sample == "redact"


def test_tasks_and_rules_are_compiled(whole: RunSpec) -> None:
    """Parameters become ceilings; equality shorthand becomes conditions."""
    task = whole.policy.tasks["classification"]
    assert (task.tier, task.min_quality, task.max_tokens, task.temperature, task.sample) == (3, 0.8, 8, 0, 0.02)
    assert task.prompt is not None
    assert (task.prompt.system, task.prompt.user) == ("Label messages for a shop.", "{{ text }}")
    assert task.scorers[0].expected == "{{ label }}"
    assert whole.policy.default_task is None
    first, second = whole.policy.rules
    assert first.when == Condition(
        all=(Condition(field="task", value="coding"), Condition(field="latency", value="realtime"))
    )
    assert first.use == ("groq-llama", "opus")
    assert second.when == Condition(field="max_cost_usd", op="lt", value=0.001)
    assert second.tier == 3


def test_a_spec_travels_by_msgpack(whole: RunSpec) -> None:
    """What the driver hands to lanes comes back equal, and holds no key."""
    wire = msgspec.msgpack.encode(whole)
    assert msgspec.msgpack.decode(wire, type=RunSpec) == whole


def test_a_run_is_known_by_name_and_vars(tmp_path: Path) -> None:
    """The same name and vars are the same run, whatever else changes; another date is another run."""
    text = "name: Label Messages!\nvars: {date: required}\n" + MINIMAL
    one, same, other = (job(tmp_path, text, date=d) for d in ("1", "1", "2"))
    assert one.run_id == same.run_id != other.run_id
    assert one.run_id.startswith("label-messages-")
    assert job(tmp_path, text.replace("[delivery, ", "["), date="1").run_id == one.run_id


def test_variables_keep_a_prompts_version(tmp_path: Path) -> None:
    """A prompt is rendered with the variables beside the row: another date is the same prompt."""
    text = MINIMAL.replace("{{ text }}", "{{ vars.date }}: {{ text }}") + "vars: {date: required}\n"
    one, other = (job(tmp_path, text, date=d).policy.tasks["default"].prompt for d in ("1", "2"))
    assert one == other
    with pytest.raises(SpecError, match=r"job.yaml:3: prompt: `vars.dat` is not declared .* did you mean `date`"):
        job(tmp_path, text.replace("vars.date", "vars.dat"), date="1")


def test_a_model_may_carry_its_account(tmp_path: Path) -> None:
    """`base_url` and the key directly on a model: it is an account of its own."""
    text = MINIMAL.replace(
        "models: [anthropic/claude-haiku-4-5]",
        "models: [{name: mine, model: llama, base_url: 'http://127.0.0.1:8000/v1', api_key: 'env:MINE', regions: [eu],"
        " price: free, limits: {concurrency: 4}}]",
    )
    made = job(tmp_path, text)
    account = made.catalog.accounts["mine"]
    assert (account.api_key, account.limits.concurrency, account.regions) == ("env:MINE", 4, ("eu",))
    assert made.catalog.models["mine"].account == "mine"
    assert made.catalog.models["mine"].price == Price(version="free")


VERSIONS = """
- name: gpt
  account: openai
  live: mini
  versions:
  - {id: mini, model: gpt-4o-mini}
  - {id: big, model: gpt-4o}
"""


def _modelled(tmp_path: Path, written: str) -> RunSpec:
    """The smallest job with these models."""
    return job(tmp_path, re.sub("models: .*\n", f"models:{written}", MINIMAL))


def _gpt(tmp_path: Path, written: str) -> Model:
    return _modelled(tmp_path, written).catalog.models["gpt"]


def test_each_version_has_the_tables_price_of_its_own_name(tmp_path: Path) -> None:
    """An evaluation, a shadow or a rollout asks another version than the live one: it costs what that one costs."""
    model = _gpt(tmp_path, VERSIONS)
    assert price_of(model, "mini") == table_price("openai", "", "gpt-4o-mini")
    assert price_of(model, "big") == table_price("openai", "", "gpt-4o")
    assert price_of(model, "mini") != price_of(model, "big")


def test_an_answer_of_another_model_is_told_or_refused_by_version(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("""\
source: in.jsonl
prompt: "{{ text }}"
accounts: {a: {protocol: openai, base_url: "http://127.0.0.1:1", provider: sandbox}}
models:
  - {name: one, account: a, price: free, model: m, on_other_model: refuse}
  - {name: two, account: a, price: free, live: v1, on_other_model: refuse,
     versions: [{id: v1, model: m1}, {id: v2, model: m2, on_other_model: tell}]}
  - {name: three, account: a, price: free, model: m}
sinks: out.jsonl
""")
    models = spec.load(tmp_path / "job.yaml").catalog.models.values()
    words = {f"{m.name}@{v.id}": v.on_other_model for m in models for v in m.versions}
    assert words == {"one@m": "refuse", "two@v1": "refuse", "two@v2": "tell", "three@m": "tell"}


def test_a_version_may_pin_its_providers_fingerprint(tmp_path: Path) -> None:
    """Where nobody tells one, it can't be pinned: an own engine's weights have a revision, Anthropic's answers none."""
    text = """\
source: in.jsonl
prompt: "{{ text }}"
accounts: {a: {protocol: openai, base_url: "http://127.0.0.1:1", provider: sandbox}}
models:
  - {name: one, account: a, price: free, model: m, fingerprint: fp_1}
  - {name: two, account: a, price: free, live: v1,
     versions: [{id: v1, model: m1, fingerprint: fp_2}, {id: v2, model: m2}]}
sinks: out.jsonl
"""
    models = job(tmp_path, text).catalog.models.values()
    assert [v.fingerprint for m in models for v in m.versions] == ["fp_1", "fp_2", None]
    for wrong, why in {
        "account: anthropic, model: claude-haiku-4-5, fingerprint: fp": "answers of the protocol `anthropic` have none",
        "worker: vllm, hour_usd: 1, model: o/m, fingerprint: fp": "pinned by `revision:`",
        "account: a, fingerprint: fp, versions: [{id: v, model: m}]": "each of them says its own",
        "account: a, versions: [{id: v, model: m, fingerprint: ''}]": "1 to 100 characters",
    }.items():
        with pytest.raises(SpecError, match=re.escape(why)):
            job(tmp_path, text.replace("  - {name: one", f"  - {{name: wrong, {wrong}}}\n  - {{name: one"))


def test_a_written_price_holds_for_all_versions_but_those_that_write_their_own(tmp_path: Path) -> None:
    """As `price:` overrides the table for a model with one version."""
    ours = "  price: {input_per_million: 3, output_per_million: 4}\n"
    model = _gpt(tmp_path, VERSIONS + ours)
    assert {v.id: price_of(model, v.id) for v in model.versions} == dict.fromkeys(
        ("mini", "big"), Price(3 * USD, 4 * USD)
    )
    model = _gpt(tmp_path, VERSIONS.replace("model: gpt-4o}", "model: gpt-4o, price: free}") + ours)
    assert (price_of(model, "mini"), price_of(model, "big")) == (Price(3 * USD, 4 * USD), Price(version="free"))


def test_a_version_that_the_table_does_not_know_needs_a_price(tmp_path: Path) -> None:
    """The live version's price would be a guess: fine-tuned ones cost more."""
    tuned = VERSIONS.replace("gpt-4o}", "ours-7}")
    with pytest.raises(
        SpecError, match=r"models\[0\]\.versions\[1\]: the price table does not know `ours-7` at openai"
    ):
        _gpt(tmp_path, tuned)
    priced = tuned.replace("ours-7", "ours-7, price: {input_per_million: 1, output_per_million: 2}")
    assert price_of(_gpt(tmp_path, priced), "big") == Price(USD, 2 * USD)


def test_the_description_names_versions_that_cost_something_else(tmp_path: Path) -> None:
    written = VERSIONS + "  price: {input_per_million: 3, output_per_million: 4}\n"
    made = _modelled(tmp_path, written.replace("model: gpt-4o}", "model: gpt-4o, price: free}"))
    told = dict(spec.describe(made))["model gpt"]
    assert told == "gpt-4o-mini at openai, $3 in, $4 out per million tokens (declared); big: free"


def test_the_sandbox_needs_no_key_and_has_pretend_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal costs nothing and says so in every price version."""
    monkeypatch.setenv("PENSTOCK_SANDBOX", "http://127.0.0.1:9001")
    made = job(tmp_path, MINIMAL.replace("anthropic/claude-haiku-4-5", "sandbox/claude-haiku-4-5, sandbox/anything"))
    account = made.catalog.accounts["sandbox"]
    assert (account.base_url, account.api_key) == ("http://127.0.0.1:9001/v1", None)
    prices = [price_of(m, m.live) for m in made.catalog.models.values()]
    assert [p.version for p in prices if p] == ["sandbox-pretend"] * 2
    assert spec.missing_secrets(made) == []


def test_a_catalogue_account_serves_the_short_form(tmp_path: Path) -> None:
    """`anthropic/…` uses the company's account (its limits, its promises), not a bare one."""
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    made = job(tmp_path, MINIMAL + "catalog: catalog.yaml\n")
    assert made.catalog.models["anthropic/claude-haiku-4-5"].no_train
    assert made.catalog.accounts["anthropic"].limits.rpm == 4000
    assert set(made.catalog.tiers.values()) == {("anthropic/claude-haiku-4-5",)}


def test_a_known_hosts_origin_holds_at_its_own_address_alone(tmp_path: Path) -> None:
    """A gateway under a provider's name serves whatever it likes: a wall must hear who made the model."""
    accounts = (
        "accounts:\n  openai: {base_url: https://proxy.example.cn/v1, api_key: env:K}\n"
        "  gateway: {provider: mistral, base_url: https://gateway.example/v1, api_key: env:K}\n"
        "  direct: {provider: mistral, api_key: env:K}\n"
        "  europe: {provider: openai, base_url: https://eu.api.openai.com/v1, api_key: env:K}\n"
        "  other_name: {provider: moonshot, base_url: https://api.moonshot.cn/v1, api_key: env:K}\n"
        "  alike: {provider: openai, base_url: https://api.openai.com.example/v1, api_key: env:K}\n"
    )
    models = [
        f"{{name: {name}, account: {account}, model: m, price: free{said}}}"
        for name, account, said in (
            ("proxied", "openai", ""),
            ("gated", "gateway", ""),
            ("told", "gateway", ", origin: cn"),
            ("straight", "direct", ""),
            ("regional", "europe", ""),
            ("home", "other_name", ""),
            ("lookalike", "alike", ""),
        )
    ]
    listed = f"[{', '.join(models)}]"
    made = job(tmp_path, MINIMAL.replace("[anthropic/claude-haiku-4-5]", listed) + accounts)
    origins = {name: model.origin for name, model in made.catalog.models.items()}
    none = {"proxied": None, "gated": None, "lookalike": None}
    assert origins == none | {"told": "cn", "straight": "eu", "regional": "us", "home": "cn"}


def test_a_job_may_choose_models_of_the_catalogue_by_name(tmp_path: Path) -> None:
    """Plain names: these models, in this order, whatever the catalogue's tiers say."""
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    text = MINIMAL.replace("anthropic/claude-haiku-4-5", "small, opus") + "catalog: catalog.yaml\n"
    assert set(job(tmp_path, text).catalog.tiers.values()) == {("small", "opus")}


def test_yes_and_no_are_words(tmp_path: Path) -> None:
    """`choices: [yes, no]` means the two words; dates and 1:30 are text too."""
    made = job(tmp_path, MINIMAL.replace("[delivery, billing, product, other]", "[yes, no, 2026-11-24, 1:30, 3, true]"))
    output = made.policy.tasks["default"].output
    assert output is not None
    assert output.choices == ("yes", "no", "2026-11-24", "1:30", "3", "true")


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    """What YAML offers against repeating oneself."""
    text = """
source: a.jsonl
models: [sandbox/a]
sinks: out/
tasks:
  one: &base {prompt: "{{ text }}", params: {max_tokens: 8}}
  two: {<<: *base, sample: 0.5}
"""
    tasks = job(tmp_path, text).policy.tasks
    assert tasks["two"].max_tokens == 8
    assert tasks["two"].sample == 0.5


def test_all_any_in_and_exists(tmp_path: Path) -> None:
    """The long forms of conditions."""
    every = "{all: [{unit: {exists: true}}, {priority: {gte: 3, lt: 9}}]}"
    rule = f"rules: [{{when: {{any: [{{tier: [1, 2]}}, {every}]}}, tier: 1}}]"
    (made,) = job(tmp_path, MINIMAL + rule).policy.rules
    assert made.when == Condition(
        any=(
            Condition(field="tier", op="in", value=(1, 2)),
            Condition(
                all=(
                    Condition(field="unit", op="exists", value=True),
                    Condition(
                        all=(
                            Condition(field="priority", op="gte", value=3),
                            Condition(field="priority", op="lt", value=9),
                        )
                    ),
                )
            ),
        )
    )


def test_the_fingerprint_says_what_changed(tmp_path: Path) -> None:
    """Prompts, models and rules are in it; sinks, budgets and execution are not."""
    before = job(tmp_path, MINIMAL).fingerprint
    harmless = MINIMAL.replace("labels", "other") + "budgets: {usd: 3}\nexecution: {lanes: 3}\nmax_dead_letters: 3\n"
    assert spec.changed(before, job(tmp_path, harmless).fingerprint) == []
    other = MINIMAL.replace("handles", "reads").replace("haiku", "sonnet")
    told = spec.changed(before, job(tmp_path, other).fingerprint)
    assert "task default: prompt has changed" in told
    assert "model anthropic/claude-haiku-4-5 is gone" in told
    assert "task default: output has changed" not in told


@pytest.mark.parametrize(("lacks", "asked_otherwise"), [("tools", False), ("temperature", True), ("top_p", True)])
def test_a_parameter_that_is_left_out_from_now_on_changes_answers(
    tmp_path: Path, lacks: str, asked_otherwise: bool
) -> None:
    """What a model can't do at all only changes where items go."""
    said = "{name: m, model: anthropic/claude-haiku-4-5}"
    lacking = said.replace("}", f", lacks: [{lacks}]}}")
    named = MINIMAL.replace("anthropic/claude-haiku-4-5", said)
    before, after = (job(tmp_path, text).fingerprint for text in (named, named.replace(said, lacking)))
    assert spec.changed(before, after) == ["model m has changed"] * asked_otherwise


GOLDEN = Path(__file__).parents[1] / "golden" / "spec_label_messages.json"


def test_an_upgrade_changes_no_run_and_no_fingerprint(whole: RunSpec) -> None:
    """A run that an older Penstock began is found and goes on, without a word of changes. (Penned once; where this
    fails, mend the code, not the file.)"""
    prompts = {name: task.prompt.version for name, task in whole.policy.tasks.items() if task.prompt}
    told = {"run_id": whole.run_id, "prompt_version": prompts, "fingerprint": whole.fingerprint}
    assert told == json.loads(GOLDEN.read_text())


def test_a_job_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command is the same run; another prompt is another. Paths start from the working folder."""
    monkeypatch.chdir(tmp_path)
    one, same = (
        spec.inline("messages.csv", "Label {{ text }}", ["sandbox/a"], "labels.parquet", choices=["x", "y"])
        for _ in range(2)
    )
    other = spec.inline(
        "messages.csv", "Say {{ text }}", ["sandbox/a"], "labels.parquet", extra={"budgets": {"usd": 1}}
    )
    assert one == same
    assert one.run_id != other.run_id
    assert one.name.startswith("messages-")
    assert one.source == FilesSource(str(tmp_path / "messages.csv"))
    assert other.budgets[0].limit_nano == USD


def test_a_job_may_be_a_mapping(tmp_path: Path) -> None:
    """`ps.run({...})`: tiers may have whole numbers as keys, lists may be tuples, paths may be `Path`."""
    made = spec.from_mapping(
        {
            "source": tmp_path / "in.jsonl",
            "models": ("sandbox/a", "sandbox/b"),
            "tiers": {1: ["sandbox/a"], 2: ["sandbox/b"]},
            "sinks": "out/",
        },
        tmp_path,
    )
    assert made.catalog.tiers == {1: ("sandbox/a",), 2: ("sandbox/b",)}
    assert made.sinks["results"] == FilesSink(f"{tmp_path}/out/")
    with pytest.raises(SpecError, match=r"job: sorce: unknown field; did you mean `source`"):
        spec.from_mapping({"sorce": "x"}, tmp_path)


def test_missing_secrets_are_named_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that the job can reach count."""
    made = job(tmp_path, MINIMAL)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    assert spec.missing_secrets(made) == ["env:ANTHROPIC_API_KEY"]
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    assert spec.missing_secrets(made) == []


def test_warnings_tell_what_may_not_be_meant(whole: RunSpec, tmp_path: Path) -> None:
    """A wall that nothing meets; a key on an open line; no budget."""
    (moving,) = spec.warnings(whole)
    assert "model small@v1: revision `main` of HuggingFaceTB/SmolLM2-135M-Instruct: other weights" in moving
    text = MINIMAL.replace(
        "models: [anthropic/claude-haiku-4-5]",
        "models: [{name: m, model: x, base_url: 'http://example.test/v1', api_key: 'env:K', price: free}]",
    )
    told = " ".join(spec.warnings(job(tmp_path, text + "walls: {eu: {regions: [eu]}}\n")))
    assert "wall eu: no model" in told
    assert "unencrypted" in told
    assert "no budget" in told


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("worker: vllm, hour_usd: 1, model: o/m", "no revision of o/m"),
        ("worker: vllm, hour_usd: 1, model: o/m, revision: v1.0", "revision `v1.0` of o/m"),
        ("worker: vllm, hour_usd: 1, model: o/m, revision: 12fd25f", "revision `12fd25f` of o/m"),
        ("worker: vllm, hour_usd: 1, model: o/m, revision: 12fd25f77366fa6b3b4b768ec3050bf629380bac", None),
        ("worker: vllm, hour_usd: 1, model: /models/m", None),
        ("worker: vllm, hour_usd: 1, model: ./m", None),
        (
            "account: anthropic, price: free, model: claude-3-5-haiku-latest",
            "claude-3-5-haiku-latest may stand for another",
        ),
        ("account: anthropic, price: free, model: claude-haiku-4-5", None),
    ],
)
def test_a_version_that_may_come_to_mean_another_model_is_told(tmp_path: Path, version: str, told: str | None) -> None:
    """Only a whole commit stands for the same weights for ever; a folder is the user's own."""
    text = MINIMAL.replace("models: [anthropic/claude-haiku-4-5]", f"models: [{{name: m, {version}}}]")
    said = moving_versions(job(tmp_path, text))
    assert [told in line for line in said] == [True] if told else said == []
    assert set(said) <= set(spec.warnings(job(tmp_path, text)))


def test_describe_reads_well(whole: RunSpec) -> None:
    """Labels and values, one line each."""
    lines = dict(spec.describe(whole))
    assert lines["tier 2"] == "groq-llama → small"
    assert lines["wall health"] == "origin us, eu; own workers only; samples: redact"
    assert lines["model opus"] == "claude-opus-4-6 at anthropic, $5 in, $25 out per million tokens (declared)"
    assert "$0.1 an hour" in lines["model small"]


def test_the_schema_is_closed_and_names_every_field() -> None:
    """`penstock schema` refuses what the loader refuses."""
    made = spec.schema()
    job_file = made["$defs"]["JobFile"]
    assert job_file["additionalProperties"] is False
    assert {"source", "models", "tiers", "walls", "execution", "on_duplicate"} <= set(job_file["properties"])
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(made)


@pytest.mark.parametrize(
    ("model", "needed"),
    [
        ("{name: m, model: x, base_url: 'http://localhost/v1', price: free}", []),
        ("{name: m, model: x, base_url: 'http://h/v1', price: {input_per_million: 1, output_per_million: 2}}", []),
        ("anthropic/claude-haiku-4-5", ["genai_prices.data", "pydantic"]),
    ],
)
def test_reading_a_job_imports_nothing_heavy(tmp_path: Path, model: str, needed: list[str]) -> None:
    """`validate` answers at once: no Ray, no Arrow, no torch; schemas and prices only where a job needs them, and no
    HTTP client to fetch newer prices."""
    (tmp_path / "job.yaml").write_text(f"source: a.jsonl\nmodels: [{model}]\nsinks: out/\n")
    heavy = "ray pyarrow torch numpy genai_prices.data pydantic httpx httpx2 aiohttp jsonschema jinja2"
    code = (
        "import sys; from penstock.jobs import spec; spec.load(sys.argv[1]); "
        f"print([m for m in {heavy.split()} if m in sys.modules]); "
        "import genai_prices as g; print(g.calc_price is not None, g.types.Usage is g.Usage)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "job.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(needed), "True True"], done.stdout
