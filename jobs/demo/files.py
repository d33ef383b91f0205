"""The demo's folder: what it writes, where results are, and the job files (as a person would write them)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.connectors.base import SinkName
from penstock.engine.errors import SpecError
from penstock.jobs import demo_data
from penstock.jobs.sandbox import cases

MARK = ".penstock-demo"
"""Only a folder with this file in it is ever emptied."""
SINKS: tuple[SinkName, ...] = ("results", "dead_letters", "costs", "quality")


def claim(folder: Path) -> Path:
    """Our folder, made or found again. Raises `SpecError` where it is somebody else's."""
    mark = folder / MARK
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise SpecError(f"{folder} is there already and isn't the demo's: run the demo in another folder")
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return folder


def act(folder: Path, name: str) -> Path:
    """An empty folder for one act: the demo shows a first run, so what an earlier one left is removed."""
    part = claim(folder) / name
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    return part


def outputs(folder: Path) -> dict[str, list[Path]]:
    """Sink → the files that are there."""
    named = {sink: folder / ("results.jsonl" if sink == "results" else f"results.{sink}.jsonl") for sink in SINKS}
    return {sink: [path] for sink, path in named.items() if path.exists()}


def write_rows(path: Path, rows: Sequence[demo_data.Row]) -> None:
    demo_data.write(path, rows)


TASKS = f"""\
tasks:
  topic:                                    # bulk: one word out of five, scored against the package's own classifiers
    tier: 3
    prompt:
      system: "You sort Python packages by topic: {"; ".join(f"{t} ({m})" for t, m in demo_data.TOPICS.items())}."
      user: "{{{{ text }}}}\\nTopic?"
    output: {{choices: [{", ".join(demo_data.TOPICS)}], on_invalid: keep}}
    params: {{max_tokens: 8, temperature: 0}}
    sample: 1.0
    scorers: [{{type: exact, expected: "{{{{ label }}}}"}}]
  rewrite:                                  # critical quality
    tier: 1
    prompt: "Rewrite this description of {{{{ package }}}} in two sentences for a newcomer:\\n\\n{{{{ text }}}}"
    params: {{max_tokens: 160, temperature: 0}}
"""
SHORTEN = """\
  shorten:                                  # good enough
    tier: 2
    prompt: "Shorten to one sentence:\\n\\n{{ text }}"
    params: {max_tokens: 60, temperature: 0}
"""


def job(name: str, tasks: str, budget_usd: float) -> str:
    return f"""\
name: {name}
catalog: catalog.yaml
source: packages.jsonl
row:
  id: "{{{{ id }}}}"
  keep: [id, package, label]
  attributes: {{task: "{{{{ kind }}}}", sensitivity: "{{{{ sensitivity }}}}"}}
{tasks}sinks: results.jsonl
budgets: [{{usd: {budget_usd:g}}}]
max_dead_letters: 5                         # more than these, and the run is a failure
"""


def rehearsal_catalog(url: str) -> str:
    """Three models at the sandbox. The prices are pretended."""
    return f"""\
# Every address below is the sandbox on this machine; nobody is paid. The prices are pretended.
accounts:
  closed: {{protocol: anthropic, base_url: "{url}", regions: [us], no_train: true, limits: {{concurrency: 4}}}}
  open: {{protocol: openai, base_url: "{url}/v1", regions: [eu], limits: {{concurrency: 8}}}}
models:
  - {{name: large, account: closed, model: pretend-large,
     price: {{input_per_million: 5, output_per_million: 25, version: pretend}}}}
  - {{name: medium, account: open, model: pretend-medium,
     price: {{input_per_million: 0.6, output_per_million: 0.8, version: pretend}}}}
  - {{name: little, account: open, model: pretend-little,
     price: {{input_per_million: 0.02, output_per_million: 0.04, version: pretend}}}}
tiers: {{1: [large], 2: [medium, large], 3: [little, medium]}}
walls: {{public: {{}}, eu-only: {{regions: [eu]}}}}       # a sensitivity that isn't named here goes nowhere
"""


def planted_catalog(url: str) -> str:
    """Three models at the sandbox that are right as often as was planted; one of them has a worse version."""
    return f"""\
# Every address below is the sandbox on this machine; nobody is paid. The prices are pretended.
accounts:
  open: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: 32}}}}
models:
  - {{name: little, account: open, model: pretend-little,
     price: {{input_per_million: 0.02, output_per_million: 0.04, version: pretend}}}}
  - name: clerk
    account: open
    live: v1
    versions:
      - {{id: v1, model: pretend-clerk-v1}}
      - {{id: v2, model: pretend-clerk-v2}}  # what the provider would like everybody to use
    price: {{input_per_million: 0.6, output_per_million: 0.8, version: pretend}}
  - {{name: large, account: open, model: pretend-large,
     price: {{input_per_million: 5, output_per_million: 25, version: pretend}}}}
tiers: {{3: [clerk]}}
"""


PLANTED_JOB = f"""\
name: demo-quality
catalog: catalog.yaml
source: messages.jsonl
row:
  id: "{{{{ id }}}}"
  keep: [id, label]
tasks:
  department:
    models: [clerk]
    prompt: "Which department handles this message? {{{{ text }}}}"
    output: {{choices: [{", ".join(cases.CHOICES)}]}}
    params: {{max_tokens: 8, temperature: 0}}
    sample: 1.0                             # every answer is scored: the rows say what is right
    scorers: [{{type: exact, expected: "{{{{ label }}}}"}}]
sinks: results.jsonl
budgets: [{{usd: 5}}]
"""


def real_catalog(url: str, model: Path, tier1: str | None) -> str:
    """Tier 3 on vLLM here; Tier 1 at the sandbox, or a real provider (`provider/model`). Two more to compare with."""
    large = (
        f"  - {tier1}\n"
        if tier1
        else f"  - {{name: large, account: closed, model: pretend-large, price: {_LARGE}}}          # the sandbox\n"
    )
    closed = "" if tier1 else f'  closed: {{protocol: anthropic, base_url: "{url}", limits: {{concurrency: 4}}}}\n'
    return f"""\
accounts:
{closed}  open: {{protocol: openai, base_url: "{url}/v1", limits: {{concurrency: 8}}}}
models:
{large}  - {{name: {PLANTED[0]}, account: open, model: pretend-fair, price: {_CHEAP}}}    # the sandbox
  - {{name: {PLANTED[1]}, account: open, model: pretend-good, price: {_CHEAP}}}
  - name: small
    worker: vllm
    model: {_quoted(model)}
    hour_usd: 0.10                          # pretended: what an hour of this machine might cost
    engine: {{max_model_len: 1024, max_num_seqs: 64, enforce_eager: true}}
tiers: {{1: [{_quoted(tier1 or "large")}], 3: [small]}}
walls: {{public: {{}}}}
"""


PLANTED = ("fair", "good")
"""Pretended models beside the real one: it is known how often they are right."""
_CHEAP = "{input_per_million: 0.6, output_per_million: 0.8, version: pretend}"
_LARGE = "{input_per_million: 5, output_per_million: 25, version: pretend}"


def _quoted(text: str | Path) -> str:
    import msgspec

    return msgspec.json.encode(str(text)).decode()


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
