"""Known hosts of models: what `provider/model` stands for. A row says only what is certain.

`regions` and `no_train` are left empty everywhere: they depend on the contract, so a wall that asks for them refuses a
host until the catalogue's account says them. `origin` is told only where a host serves its own models alone.
"""

from __future__ import annotations

import os
import re

import msgspec

from penstock.engine.catalog import Protocol

SANDBOX_URL = "http://127.0.0.1:8899"
"""Where `penstock sandbox` listens unless PENSTOCK_SANDBOX says otherwise."""


class Host(msgspec.Struct, frozen=True):
    """`prices`: the provider's name in the price table. `origin`: where its models come from, if all from one place.
    `also`: its addresses beside `base_url` and what lies below that, as its documentation names them."""

    name: str
    base_url: str
    key: str | None
    protocol: Protocol = "openai"
    prices: str | None = None
    origin: str | None = None
    also: tuple[str, ...] = ()

    def owns(self, base_url: str) -> bool:
        """Whether an address is the host's own: the known one, a subdomain of it (`eu.api.openai.com`,
        `us.api.x.ai`), or one of `also`. A gateway's is not."""
        at = _netloc(base_url)
        main = _netloc(self.base_url)
        return at == main or at.endswith(f".{main}") or at in self.also


_ROWS = (
    Host("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", prices="openai", origin="us"),
    Host("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY", "anthropic", prices="anthropic", origin="us"),
    Host("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY", prices="google",
         origin="us"),
    Host("xai", "https://api.x.ai/v1", "XAI_API_KEY", prices="x-ai", origin="us"),
    Host("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", prices="deepseek", origin="cn"),
    Host("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY", prices="mistral", origin="eu",
         also=("api.eu.mistral.ai", "api.us.mistral.ai")),
    Host("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", prices="groq"),
    Host("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", prices="together",
         also=("api.together.ai",)),
    Host("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", prices="fireworks"),
    Host("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", prices="openrouter"),
    Host("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY", prices="cerebras"),
    Host("perplexity", "https://api.perplexity.ai", "PERPLEXITY_API_KEY", prices="perplexity"),
    Host("novita", "https://api.novita.ai/v3/openai", "NOVITA_API_KEY", prices="novita"),
    Host("moonshot", "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY", prices="moonshotai", origin="cn",
         also=("api.moonshot.cn",)),
)  # fmt: skip

HOSTS: dict[str, Host] = {row.name: row for row in _ROWS}


def host(name: str) -> Host | None:
    """The host of this name; `sandbox` is where PENSTOCK_SANDBOX points."""
    if name == "sandbox":
        return sandbox()
    return HOSTS.get(name)


def sandbox() -> Host:
    """The pretend provider: no key, pretend prices."""
    root = (os.environ.get("PENSTOCK_SANDBOX") or SANDBOX_URL).rstrip("/")
    return Host("sandbox", root if root.endswith("/v1") else f"{root}/v1", None)


def names() -> list[str]:
    return sorted([*HOSTS, "sandbox"])


def by_url(base_url: str) -> Host | None:
    """The known host whose own address this is (see `Host.owns`)."""
    return next((h for h in [*HOSTS.values(), sandbox()] if h.owns(base_url)), None)


def is_sandbox(base_url: str) -> bool:
    """Whether nobody is billed there, whatever name the account has."""
    return _netloc(base_url) == _netloc(sandbox().base_url)


def is_here(base_url: str) -> bool:
    """Whether it is on this machine: a rehearsal, or a proxy of one's own. In a cluster each node has its own."""
    return _netloc(base_url).rpartition(":")[0].strip("[]") in ("127.0.0.1", "::1") or _netloc(base_url) == "localhost"


def _netloc(url: str) -> str:
    return re.split(r"[/?#\\]", url.split("://", 1)[-1], maxsplit=1)[0].lower().replace("localhost:", "127.0.0.1:")
