"""What `penstock validate` tells: the job in a few lines, what may surprise, which secrets are not there."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from penstock.connectors.registry import where
from penstock.engine.catalog import Account, Catalog, Model, Price, Wall
from penstock.engine.items import NANO_PER_USD
from penstock.engine.walls import refusal
from penstock.jobs.spec.digest import names_in_use
from penstock.workers.runspec import RunSpec


def missing_secrets(spec: RunSpec) -> list[str]:
    """References (`env:NAME`, `file:/path`) that the job needs and this machine lacks. Keys are never shown."""
    wanted = dict.fromkeys(a.api_key for a in _accounts_in_use(spec) if a.api_key)
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
    return [spec.catalog.models[name] for name in names_in_use(spec.policy, spec.catalog)]


def _accounts_in_use(spec: RunSpec) -> list[Account]:
    names = dict.fromkeys(m.account for m in _models_in_use(spec) if m.account)
    return [spec.catalog.accounts[n] for n in names]


def warnings(spec: RunSpec) -> list[str]:
    """What is allowed and may still not be meant."""
    return [*_open_lines(spec), *_dead_walls(spec), *_idle_models(spec), *_uneven_budgets(spec)]


def _open_lines(spec: RunSpec) -> list[str]:
    return [
        f"account {a.name}: its key would travel unencrypted to {a.base_url}; use https"
        for a in _accounts_in_use(spec)
        if a.api_key and a.base_url.startswith("http://") and not _loopback(a.base_url)
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


def _uneven_budgets(spec: RunSpec) -> list[str]:
    return [] if spec.budgets else ["no budget is set; add `budgets: [{usd: 25}]` for a hard limit"]


def describe(spec: RunSpec) -> list[tuple[str, str]]:
    """(label, value) lines for people."""
    lines = [("job", spec.name), ("run", spec.run_id)]
    lines += [(f"var {name}", value) for name, value in spec.vars.items()]
    lines.append(("source", str(getattr(spec.source, "path", None) or getattr(spec.source, "name", ""))))
    lines += [(f"sink {name}", where(sink)) for name, sink in spec.sinks.items()]
    lines += [(f"tier {tier}", " → ".join(names)) for tier, names in spec.catalog.tiers.items()]
    lines += [(f"model {m.name}", _model(m, spec.catalog)) for m in _models_in_use(spec)]
    lines += [(f"wall {w.name}", _wall(w)) for w in spec.catalog.walls.values()]
    lines.append(("tasks", ", ".join(spec.policy.tasks)))
    if spec.policy.rules:
        lines.append(("rules", str(len(spec.policy.rules))))
    for budget in spec.budgets:
        scope = f" a {budget.per}" if budget.per else ""
        whom = f" for tenant {budget.tenant}" if budget.tenant else ""
        lines.append(("budget", f"${budget.limit_nano / NANO_PER_USD:,.2f}{scope}{whom}"))
    lines.append(("state", spec.state))
    return lines


def _model(model: Model, catalog: Catalog) -> str:
    version = model.live_version
    if model.worker:
        hour = f", ${model.hour_usd:g} an hour and replica" if model.hour_usd is not None else ""
        return f"{version.model} on own workers ({model.worker}){hour}"
    account = catalog.accounts[model.account or ""]
    return f"{version.model} at {account.name}, {price_text(model.price)}"


def price_text(price: Price | None) -> str:
    if price is None:
        return "price unknown"
    if price.version == "free":
        return "free"
    text = f"${price.input / NANO_PER_USD:g} in, ${price.output / NANO_PER_USD:g} out per million tokens"
    return f"{text} ({price.version})"


def _wall(wall: Wall) -> str:
    asks = [f"regions {', '.join(wall.regions)}"] if wall.regions else []
    asks += [f"origin {', '.join(wall.origin)}"] if wall.origin else []
    asks += [f"licence {', '.join(wall.licence)}"] if wall.licence else []
    asks += [word for word, on in (("own workers only", wall.self_hosted), ("no training", wall.no_train)) if on]
    asks += [f"samples: {wall.sample}"] if wall.sample != "keep" else []
    return "; ".join(asks) or "asks nothing"
