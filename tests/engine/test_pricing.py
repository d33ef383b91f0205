"""No wrong bill: integers, rounded up once, never above the worst case that was reserved."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.catalog import Model, Price, PriceAbove, Version
from penstock.engine.items import Request, Usage
from penstock.engine.pricing import (
    GpuClock,
    cost_nano,
    estimate_input_tokens,
    expected_nano,
    max_input_tokens,
    output_ceiling,
    own_price,
    price_of,
    sane,
    worst_case_nano,
)

RATE = st.integers(0, 10**11)
MAYBE = st.none() | RATE
ABOVE = st.builds(PriceAbove, st.integers(0, 10_000), RATE, RATE, MAYBE, MAYBE, MAYBE)
PRICES = st.builds(
    Price,
    input=RATE,
    output=RATE,
    cached=MAYBE,
    cache_write=MAYBE,
    cache_write_1h=MAYBE,
    per_request=RATE,
    above=st.lists(ABOVE, max_size=2).map(lambda rows: tuple(sorted(rows, key=lambda a: a.start))),
)
TOKENS = st.integers(0, 20_000)


def test_each_kind_of_token_has_its_price() -> None:
    """Cached and written tokens are parts of the input and charged once, at their own price."""
    price = Price(input=1_000_000, output=2_000_000, cached=100_000, cache_write=1_250_000, cache_write_1h=2_000_000)
    usage = Usage(input=1_000, cached=500, cache_write=200, cache_write_1h=100, output=50, reasoning=40)
    assert cost_nano(usage, price) == 200 + 50 + 250 + 200 + 100


def test_a_price_that_is_not_given_is_the_input_price() -> None:
    """Cached tokens without a price of their own are plain input; one-hour writes cost what writes cost."""
    usage = Usage(input=1_000, cached=400, cache_write=300, cache_write_1h=300)
    assert cost_nano(usage, Price(input=1_000_000)) == 1_000
    assert cost_nano(usage, Price(input=1_000_000, cache_write=2_000_000)) == 1_600


def test_a_request_has_a_price_beside_its_tokens() -> None:
    """Once a call, in its bill, its worst case and the forecast; so often where those of several are summed."""
    price = Price(input=1_000_000, output=2_000_000, per_request=12_000_000)
    usage = Usage(input=100, output=10)
    assert cost_nano(usage, price) == expected_nano(100, 10, price) == worst_case_nano(100, 10, price) == 12_000_120
    assert cost_nano(usage, price, calls=3) == 36_000_120


def test_a_call_is_rounded_up_once() -> None:
    """One nano-dollar at most is added to a call, and nothing to a free one."""
    assert cost_nano(Usage(input=1, output=1), Price(input=1, output=1)) == 1
    assert cost_nano(Usage(input=1, output=1), Price()) == 0


def test_a_long_prompt_makes_the_whole_call_dearer() -> None:
    """Beyond the threshold every token has the dearer price; at it, none."""
    price = Price(input=1_000_000, output=1_000_000, above=(PriceAbove(100, 2_000_000, 3_000_000),))
    assert cost_nano(Usage(input=100, output=10), price) == 110
    assert cost_nano(Usage(input=101, output=10), price) == 202 + 30
    assert expected_nano(101, 10, price) == 232


def test_a_usage_that_contradicts_itself_is_never_understated() -> None:
    """Negatives count as nothing, parts larger than the whole raise the whole, and it is flagged."""
    assert sane(Usage(input=10, cached=4, output=2)) == (Usage(input=10, cached=4, output=2), True)
    fixed, ok = sane(Usage(input=3, cached=10, cache_write=-5, output=-1, reasoning=7))
    assert not ok
    assert fixed == Usage(input=10, cached=10, output=7, reasoning=7)


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        (Usage(input=-1), Usage()),
        (Usage(input=9, cached=-1), Usage(input=9)),
        (Usage(input=9, cache_write=-1), Usage(input=9)),
        (Usage(input=9, cache_write_1h=-1), Usage(input=9)),
        (Usage(output=-1), Usage()),
        (Usage(output=9, reasoning=-1), Usage(output=9)),
        (Usage(output=9, reasoning=10), Usage(output=10, reasoning=10)),
        (Usage(input=9, cached=10), Usage(input=10, cached=10)),
        (Usage(input=9, cache_write=10), Usage(input=10, cache_write=10)),
        (Usage(input=9, cache_write_1h=10), Usage(input=10, cache_write_1h=10)),
    ],
)
def test_each_contradiction_is_seen_by_itself(told: Usage, meant: Usage) -> None:
    """The quick look lets nothing pass that does not add up."""
    assert sane(told) == (meant, False)


@given(PRICES, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS)
def test_no_call_costs_more_than_its_worst_case(
    price: Price, plain: int, cached: int, written: int, hour: int, output: int
) -> None:
    """Whatever of the input was cached or written: the reserved amount covers it."""
    usage = Usage(plain + cached + written + hour, cached, written, hour, output)
    assert 0 <= cost_nano(usage, price) <= worst_case_nano(usage.input + 17, output + 3, price)


@given(PRICES, TOKENS, TOKENS)
def test_costs_are_exact_to_the_nano(price: Price, inputs: int, output: int) -> None:
    """The integer is the true cost, rounded up."""
    plain = Price(input=price.input, output=price.output)
    true = Fraction(inputs * price.input + output * price.output, 1_000_000)
    assert 0 <= cost_nano(Usage(input=inputs, output=output), plain) - true < 1


@given(st.text(), st.integers(0, 3))
def test_the_bound_on_input_tokens_holds_for_any_text(text: str, images: int) -> None:
    """A token is at least one byte of content; the bound is never under the bytes, and the estimate never above it."""
    import msgspec

    body = msgspec.json.encode({"messages": [{"role": "user", "content": text}]})
    request = Request(body, images=images)
    assert max_input_tokens(request) >= len(text.encode("utf-8", "surrogatepass")) + 20_000 * images
    assert estimate_input_tokens(request) <= max_input_tokens(request)
    assert max_input_tokens(request, 100) == max_input_tokens(request) + 100


def test_a_picture_in_the_body_is_not_text() -> None:
    """An inline image counts as an image; its letters are not reckoned as text."""
    body = b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}]}]}'
    inline = Request(body % (b"A" * 100_000), images=1, image_bytes=100_000)
    assert max_input_tokens(inline) < 21_000
    assert estimate_input_tokens(inline) < 1_100


def test_every_call_has_an_output_ceiling() -> None:
    """The request's, else the task's, else the model's, else 1,024 or half of a small context."""
    small = Model("s", (Version("v", "s"),), "v", worker="vllm", context=1_000)
    assert output_ceiling(Request(b"", max_tokens=5), 6, small) == 5
    assert output_ceiling(Request(b""), 6, small) == 6
    assert output_ceiling(Request(b""), None, small) == 500
    assert output_ceiling(Request(b"")) == 1_024


def test_an_own_model_has_a_price_to_plan_with() -> None:
    """$3.60 an hour at 1,000 tokens a second is $1 a million; nothing known of an API model is no price."""
    version = (Version("v", "s"),)
    assert own_price(3_600_000_000).input == 1_000_000_000
    assert price_of(Model("s", version, "v", worker="vllm", hour_usd=3.6), "v") == own_price(3_600_000_000)
    assert price_of(Model("s", version, "v", account="a"), "v") is None
    assert price_of(Model("s", version, "v", account="a", price=Price(1, 2)), "v") == Price(1, 2)


def test_a_version_has_its_own_price_else_the_models() -> None:
    dear = Version("big", "s-big", price=Price(10, 20))
    model = Model("s", (Version("mini", "s"), dear), "mini", account="a", price=Price(1, 2))
    assert price_of(model, "mini") == Price(1, 2)
    assert price_of(model, "big") == Price(10, 20)
    with pytest.raises(KeyError, match="s@huge"):
        price_of(model, "huge")


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["started", "ready", "stopped", "served", "price"]),
        st.sampled_from(["a", "b"]),
        st.floats(0, 5_000),
    ),
    max_size=30,
)


@given(st.integers(0, 10**11), EVENTS)
def test_what_own_gpus_cost_is_what_is_charged(hour_nano: int, events: list[tuple[str, str, float]]) -> None:
    """Charged by the running rate, plus load, plus idle, is hours × price to the nano-dollar, however it went."""
    clock, now, charged = GpuClock(hour_nano), 1_700_000_000.0, 0
    up: dict[str, float] = {}
    seconds = Fraction(0)
    for event, replica, pause in events:
        now += pause
        match event:
            case "started" | "stopped":
                seconds += Fraction(round(now * 1000) - round(up.pop(replica) * 1000), 1000) if replica in up else 0
                if event == "started":
                    up[replica] = now
                    clock.started(replica, now)
                else:
                    clock.stopped(replica, now)
            case "ready":
                clock.ready(replica, now)
            case "served":
                usage = Usage(input=int(pause * 10), output=int(pause))
                charged += cost_nano(usage, clock.price(now))
                clock.served(usage)
            case _:
                assert clock.price(now).input >= 0
    seconds += sum(Fraction(round(now * 1000) - round(t * 1000), 1000) for t in up.values())
    lines = clock.close(charged, now)
    assert charged + lines.load_nano + lines.idle_nano == int(hour_nano * seconds / 3600)
    assert lines.load_nano >= 0
    assert clock.close(charged, now) == lines


def test_the_running_rate_follows_what_is_served() -> None:
    """Ten times the tokens in the same hour is a tenth of the price; load time is not in the rate."""
    clock = GpuClock(3_600_000_000)
    clock.started("a", 0.0)
    clock.ready("a", 1_000.0)
    clock.served(Usage(input=900_000, output=100_000))
    assert clock.price(2_000.0).input == 1_000_000_000
    clock.served(Usage(input=9_000_000))
    assert clock.price(2_000.0).input == 100_000_000
    assert clock.close(0, 2_000.0).load_nano == 1_000_000_000
