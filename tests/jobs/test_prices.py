"""Prices are exact integers, from the file or from the table, and never a guess without a word."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs import hosts, prices

USD = 1_000_000_000


def test_what_a_person_wrote_is_what_is_charged() -> None:
    """0.1 dollar is 100,000,000 nano-dollars, not one less."""
    assert prices.nano(0.1) == USD // 10
    assert prices.nano(0.000000001) == 1
    assert prices.nano("0.59") == 590_000_000
    assert prices.nano(25) == 25 * USD
    assert prices.nano(0) == 0


@given(st.decimals(min_value=0, max_value=1_000_000, places=9))
def test_every_amount_of_nine_decimals_is_exact(amount: Decimal) -> None:
    """Whatever the digits, as text they survive."""
    assert prices.nano(str(amount)) == int(amount.scaleb(9))


@pytest.mark.parametrize(
    "amount", ["NaN", "Infinity", "-1", "-0.5", "1e-10", "", "free", "0x1", float("nan"), float("inf")]
)
def test_what_is_no_amount_is_refused(amount: str | float) -> None:
    """Not a number, not finite, negative, finer than a nano-dollar."""
    with pytest.raises(ValueError, match=r"\w"):
        prices.nano(amount)


def test_the_table_knows_cached_and_written_tokens() -> None:
    """A cached read is cheaper, a cache write dearer than plain input."""
    price = prices.table_price("anthropic", "", "claude-haiku-4-5")
    assert price is not None
    assert price.cached is not None
    assert price.cache_write is not None
    assert price.cache_write_1h is not None
    assert 0 < price.cached < price.input < price.cache_write < price.cache_write_1h < price.output
    assert re.fullmatch(r"genai-prices \d+\.\d+\.\d+", price.version)


def test_long_prompts_cost_what_the_table_says() -> None:
    """Where the price steps up with the prompt's length, the steps are in the price."""
    price = prices.table_price("google", "", "gemini-2.5-pro")
    assert price is not None
    (step,) = price.above
    assert step.start == 200_000
    assert step.input > price.input
    assert step.output > price.output


def test_hours_of_the_day_never_make_a_bill_dearer_than_reckoned() -> None:
    """DeepSeek's price changes within the day: the dearest holds, so that a budget is never overrun."""
    from datetime import UTC, datetime

    from genai_prices import Usage, calc_price

    price = prices.table_price("deepseek", "", "deepseek-chat")
    assert price is not None
    for hour in range(24):
        when = datetime.now(UTC).replace(hour=hour)
        usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
        real = calc_price(usage, "deepseek-chat", provider_id="deepseek", genai_request_timestamp=when)
        assert price.input + price.output >= int(real.total_price * USD)


def test_an_unknown_model_or_host_has_no_price() -> None:
    """None, never zero: the loader then asks for one."""
    assert prices.table_price("openai", "", "gpt-of-tomorrow") is None
    assert prices.table_price(None, "http://localhost:8000/v1", "gpt-4o-mini") is None
    assert prices.table_price("nobody", "", "gpt-4o-mini") is None


@pytest.mark.parametrize(
    ("provider", "model", "part"),
    [
        ("perplexity", "sonar", "requests_kcount"),
        ("perplexity", "sonar-deep-research", "output_citation_mtok, output_reasoning_mtok"),
        ("openrouter", "perplexity/sonar", "searches"),
        ("openai", "gpt-4o-search-preview", "searches"),
        ("openai", "gpt-4o-mini-search-preview-2025-03-11", "searches"),
        ("google", "gemini-2.5-flash-image", "output_image_mtok"),
        ("openai", "gpt-audio", "output_audio_mtok"),
    ],
)
def test_a_price_with_parts_that_cannot_be_counted_is_no_price(provider: str, model: str, part: str) -> None:
    """Its tokens alone would be a bill that is too low. The error names the parts."""
    with pytest.raises(prices.Uncounted, match=part):
        prices.table_price(provider, "", model)
    assert prices.sandbox_price(model).version == "sandbox-pretend"


def test_what_only_a_refused_request_would_pay_does_not_matter() -> None:
    """Searches on demand, audio that is sent: such requests are refused, all others cost their tokens."""
    assert prices.table_price("anthropic", "", "claude-haiku-4-5") is not None
    assert prices.table_price("google", "", "gemini-2.5-flash") is not None
    assert prices.table_price("openai", "", "gpt-4o") is not None


def test_an_address_finds_its_provider() -> None:
    """An account without a known name is priced by where it points."""
    assert prices.table_price(None, "https://api.groq.com/openai/v1", "llama-3.3-70b-versatile") is not None


def test_the_sandbox_pretends_the_namesakes_price() -> None:
    """So a rehearsal's forecast is of the right size, and marked."""
    real, pretend = prices.table_price("openai", "", "gpt-4o-mini"), prices.sandbox_price("gpt-4o-mini")
    assert real is not None
    assert (pretend.input, pretend.output) == (real.input, real.output)
    assert pretend.version == "sandbox-pretend" == prices.sandbox_price("anything").version
    assert prices.sandbox_price("anything").output > 0


def test_a_known_host_says_only_what_is_certain() -> None:
    """Addresses are https; keys have names; every price provider exists in the table."""
    from genai_prices.data_snapshot import get_snapshot

    known = {provider.id for provider in get_snapshot().providers}
    for host in hosts.HOSTS.values():
        assert host.base_url.startswith("https://")
        assert host.key
        assert re.fullmatch(r"[A-Z]+_API_KEY", host.key)
        assert host.prices in known
        assert hosts.by_url(host.base_url) == host


def test_the_sandbox_stands_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without /v1 and a trailing slash."""
    monkeypatch.delenv("PENSTOCK_SANDBOX", raising=False)
    assert hosts.sandbox().base_url == "http://127.0.0.1:8899/v1"
    for url in ("http://127.0.0.1:1234", "http://127.0.0.1:1234/", "http://127.0.0.1:1234/v1"):
        monkeypatch.setenv("PENSTOCK_SANDBOX", url)
        assert hosts.sandbox().base_url == "http://127.0.0.1:1234/v1"


def test_a_hosts_regional_addresses_are_its_own() -> None:
    """As their documentation names them; what only looks alike is somebody else's."""
    own = {
        "https://eu.api.openai.com/v1": "openai",
        "https://us.api.x.ai/v1": "xai",
        "https://api.eu.mistral.ai/v1": "mistral",
        "https://eu.openrouter.ai/api/v1": "openrouter",
        "https://api.moonshot.cn/v1": "moonshot",
    }
    for url, name in own.items():
        found = hosts.by_url(url)
        assert found is not None
        assert found.name == name
    for url in ("https://api.openai.com.example/v1", "https://example.com?.api.openai.com", "https://notapi.x.ai/v1"):
        assert hosts.by_url(url) is None
