"""What `penstock validate` tells: the job in a few lines, what may surprise, which secrets are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from penstock.connectors.registry import where
from penstock.connectors.settings import (
    Connection,
    FilesSink,
    FilesSource,
    KafkaSink,
    KafkaSource,
    MemorySource,
    S3Sink,
    S3Source,
    SinkSettings,
    SourceSettings,
)
from penstock.engine.catalog import Account, Catalog, Model, Price, Version, Wall
from penstock.engine.items import NANO_PER_USD
from penstock.engine.naming import LATEST, is_commit, is_hub_name
from penstock.engine.policy import NEVER
from penstock.engine.pricing import price_of
from penstock.engine.walls import refusal
from penstock.jobs.spec.digest import names_called
from penstock.jobs.spec.places.connections import SECRETS
from penstock.workers.runspec import RunSpec


def missing_secrets(spec: RunSpec) -> list[str]:
    """References (`env:NAME`, `file:/path`) that the job needs and this machine lacks. Keys are never shown."""
    wanted = dict.fromkeys(a.api_key for a in _accounts_in_use(spec) if a.api_key)
    for connection in _connections_in_use(spec):
        wanted |= dict.fromkeys(key for name in SECRETS if (key := getattr(connection, name)))
    return [reference for reference in wanted if not _there(reference)]


def _there(reference: str) -> bool:
    kind, _, rest = reference.partition(":")
    return bool(os.environ.get(rest)) if kind == "env" else _readable(rest)


def _readable(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except (OSError, ValueError):
        return False


def _models_in_use(spec: RunSpec) -> list[Model]:
    return [spec.catalog.models[name] for name in names_called(spec.policy, spec.catalog)]


def _accounts_in_use(spec: RunSpec) -> list[Account]:
    names = dict.fromkeys(m.account for m in _models_in_use(spec) if m.account)
    return [spec.catalog.accounts[n] for n in names]


def _connections_in_use(spec: RunSpec) -> Iterator[Connection]:
    """Of the source and the sinks; one may come several times."""
    for place in (spec.source, *spec.sinks.values()):
        if isinstance(place, KafkaSource | KafkaSink) and isinstance(place.connection, Connection):
            yield place.connection


def warnings(spec: RunSpec) -> list[str]:
    """What is allowed and may still not be meant."""
    return [
        *_open_lines(spec),
        *_open_brokers(spec),
        *_near_state(spec),
        *_late_files(spec),
        *_dead_walls(spec),
        *_idle_models(spec),
        *_cascades(spec),
        *moving_versions(spec),
        *_uneven_budgets(spec),
    ]


def _open_lines(spec: RunSpec) -> list[str]:
    return [
        f"account {a.name}: its key would travel unencrypted to {a.base_url}; use https"
        for a in _accounts_in_use(spec)
        if a.api_key and a.base_url.startswith("http://") and not _loopback(a.base_url)
    ]


def _open_brokers(spec: RunSpec) -> list[str]:
    """A password, or the answer of a registry that wants one, on an open line."""
    told: list[str] = []
    for connection in dict.fromkeys(_connections_in_use(spec)):
        plain = connection.security_protocol == "SASL_PLAINTEXT"
        far = [b for b in connection.bootstrap.split(",") if not _loopback(f"kafka://{b}")]
        if plain and far:
            told.append(f"Kafka at {far[0]}: the password would travel unencrypted (SASL_PLAINTEXT); use SASL_SSL")
        registry = connection.schema_registry or ""
        if connection.schema_registry_auth and registry.startswith("http://") and not _loopback(registry):
            told.append(f"schema registry {registry}: its password would travel unencrypted; use https")
    return told


def _late_files(spec: RunSpec) -> list[str]:
    if not spec.endless or not isinstance(spec.sinks["results"], FilesSink):
        return []
    return [
        "the input has no end, and files are written when the run is stopped; results that are read meanwhile want a "
        "topic or S3 (`penstock tail JOB` shows what is committed)"
    ]


def _near_state(spec: RunSpec) -> list[str]:
    """Progress stands with the results; what is left in a local folder are budgets, history and logs."""
    if "://" in spec.state or not isinstance(spec.sinks["results"], KafkaSink | S3Sink):
        return []
    return [
        "state is a folder of this machine: fine for one machine; where several shall resume this job or share its "
        "budgets, name s3://bucket/prefix"
    ]


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _dead_walls(spec: RunSpec) -> list[str]:
    targets = [(m, spec.catalog.accounts.get(m.account or "")) for m in _models_in_use(spec)]
    return [
        f"wall {w.name}: no model of this job meets it; its items become dead letters"
        for w in spec.catalog.walls.values()
        if all(refusal(w, model, account) for model, account in targets)
    ]


def _idle_models(spec: RunSpec) -> list[str]:
    used = {m.name for m in _models_in_use(spec)}
    return [f"model {n}: in no tier and no rule; only a pin reaches it" for n in spec.catalog.models if n not in used]


def _cascades(spec: RunSpec) -> list[str]:
    told: list[str] = []
    for name, cascade in ((t.name, t.cascade) for t in spec.policy.tasks.values() if t.cascade is not None):
        if cascade.promise is None and cascade.threshold < NEVER:
            told.append(f"task {name}: its cascade was not calibrated; nothing is promised of the answers it accepts")
        elif cascade.promise is not None:
            known = {target.partition(" by ")[0] for target in cascade.thresholds}
            below = (f"{m}@{spec.catalog.models[m].live}" for m in cascade.models[:-1])
            told += [
                f"task {name}: its calibration has no threshold for {target}, so all answers of it are doubted"
                for target in below
                if target not in known
            ]
    return told


def moving_versions(spec: RunSpec) -> list[str]:
    """Versions by whose names others may answer any day, without a change of the catalogue."""
    each = ((model, version) for model in _models_in_use(spec) for version in model.versions)
    return [f"model {model.name}@{version.id}: {why}" for model, version in each if (why := _moves(model, version))]


def _moves(model: Model, version: Version) -> str | None:
    if model.worker and is_hub_name(version.model) and not is_commit(version.revision):
        named = f"revision `{version.revision}`" if version.revision else "no revision"
        return f"{named} of {version.model}: other weights may be loaded any day; pin a commit, all 40 hex digits of it"
    if not model.worker and version.model.endswith(LATEST):
        return f"{version.model} may stand for another model any day; name a dated one"
    return None


_PURPOSES = {"judge": "judges", "shadow": "shadows", "explore": "exploring"}


def _uneven_budgets(spec: RunSpec) -> list[str]:
    limited = any(budget.role is None for budget in spec.budgets)
    return [] if limited else ["no budget is set; add `budgets: [{usd: 25}]` for a hard limit"]


def describe(spec: RunSpec) -> list[tuple[str, str]]:
    """(label, value) lines for people."""
    lines = [("job", spec.name), ("run", spec.run_id)]
    lines += [(f"var {name}", value) for name, value in spec.vars.items()]
    lines += _source(spec.source)
    lines += [(f"sink {name}", _sink(sink)) for name, sink in spec.sinks.items()]
    lines += [(f"tier {tier}", " → ".join(names)) for tier, names in spec.catalog.tiers.items()]
    lines += [(f"model {m.name}", _model(m, spec.catalog)) for m in _models_in_use(spec)]
    lines += [(f"wall {w.name}", _wall(w)) for w in spec.catalog.walls.values()]
    lines.append(("tasks", ", ".join(spec.policy.tasks)))
    if spec.policy.rules:
        lines.append(("rules", str(len(spec.policy.rules))))
    for budget in spec.budgets:
        scope = f" a {budget.per}" if budget.per else ""
        whom = f" for tenant {budget.tenant}" if budget.tenant else ""
        whom += f" for {_PURPOSES[budget.role]}" if budget.role else ""
        lines.append(("budget", f"${budget.limit_nano / NANO_PER_USD:,.2f}{scope}{whom}"))
    lines.append(("state", spec.state))
    return lines


def _source(source: SourceSettings) -> list[tuple[str, str]]:
    match source:
        case FilesSource():
            return [("source", source.path)]
        case MemorySource():
            return [("source", f"memory:{source.name}")]
        case S3Source():
            at = f" at {source.endpoint}" if source.endpoint else ""
            return [("source", f"s3://{source.bucket}/{source.prefix}{source.pattern or ''}{at}")]
        case KafkaSource():
            topics = ", ".join(source.topics) or f"topics like {source.pattern}"
            return [("source", f"kafka://{source.bootstrap}/{topics}"), ("reads", _span(source))]


def _span(source: KafkaSource) -> str:
    kind, colon, name = source.start.partition(":")
    where_from = f"where group {name} is" if kind == "group" and colon else source.start
    until = "and goes on for ever" if source.until == "forever" else "to what is there when the run is planned"
    order = "; records of one key one after another" if source.order == "key" else ""
    return f"from {where_from}, {until}{order}"


def _sink(sink: SinkSettings) -> str:
    notes: list[str] = []
    match sink:
        case KafkaSink():
            notes = [sink.format] if sink.format != "json" else []
            notes += ["made where it is missing"] if sink.create else []
        case S3Sink():
            notes = [f"at {sink.endpoint}"] if sink.endpoint else []
            notes += [f"parted by {', '.join(sink.partition_by)}"] if sink.partition_by else []
            notes += [f"encrypted with {sink.sse}"] if sink.sse else []
        case _:
            pass
    return f"{where(sink)} ({'; '.join(notes)})" if notes else where(sink)


def _model(model: Model, catalog: Catalog) -> str:
    version = model.live_version
    if model.worker:
        hour = f", ${model.hour_usd:g} an hour and replica" if model.hour_usd is not None else ""
        return f"{version.model} on own workers ({model.worker}){hour}"
    account = catalog.accounts[model.account or ""]
    price = price_of(model, version.id)
    others = [f"{v.id}: {price_text(p)}" for v in model.versions if (p := price_of(model, v.id)) != price]
    return "; ".join([f"{version.model} at {account.name}, {price_text(price)}", *others])


def price_text(price: Price | None) -> str:
    if price is None:
        return "price unknown"
    if price.version == "free":
        return "free"
    text = f"${price.input / NANO_PER_USD:g} in, ${price.output / NANO_PER_USD:g} out per million tokens"
    if price.per_request:
        text += f", ${price.per_request / NANO_PER_USD:g} a request"
    return f"{text} ({price.version})"


def _wall(wall: Wall) -> str:
    asks = [f"regions {', '.join(wall.regions)}"] if wall.regions else []
    asks += [f"origin {', '.join(wall.origin)}"] if wall.origin else []
    asks += [f"licence {', '.join(wall.licence)}"] if wall.licence else []
    asks += [word for word, on in (("own workers only", wall.self_hosted), ("no training", wall.no_train)) if on]
    asks += [f"samples: {wall.sample}"] if wall.sample != "keep" else []
    return "; ".join(asks) or "asks nothing"
