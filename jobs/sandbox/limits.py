"""The pretend provider's own limits, and the headers by which each protocol tells of them."""

from __future__ import annotations

from datetime import UTC, datetime

from penstock.jobs.sandbox.settings import Behaviour


class Level:
    """A bucket that holds a minute's worth and fills evenly."""

    __slots__ = ("at", "level", "size")

    def __init__(self, size: int, tick: float) -> None:
        self.size = size
        self.level = float(size)
        self.at = tick

    def fill(self, tick: float) -> None:
        self.level = min(float(self.size), self.level + (tick - self.at) * self.size / 60.0)
        self.at = tick

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` is there; 0: it is. More than the bucket holds passes when it is full."""
        short = min(amount, float(self.size)) - self.level
        return max(0.0, short * 60.0 / self.size)

    def full_s(self) -> float:
        return (self.size - self.level) * 60.0 / self.size


class ModelLimits:
    """The limits of one model. Input is charged when a request comes in, output when its answer leaves."""

    def __init__(self, behaviour: Behaviour, tick: float) -> None:
        self.concurrency = behaviour.concurrency
        self.running = 0
        sizes = (behaviour.rpm, behaviour.tpm, behaviour.input_tpm, behaviour.output_tpm)
        self.requests, self.tokens, self.input, self.output = (Level(n, tick) if n else None for n in sizes)
        self.limited = any(sizes)

    def admit(self, amount: int, tick: float) -> float:
        """0: charged and admitted. Else seconds to wait."""
        if self.concurrency is not None and self.running >= self.concurrency:
            return 1.0
        wants = ((self.requests, 1), (self.tokens, amount), (self.input, amount), (self.output, 1))
        wait_s = 0.0
        for level, want in wants:
            if level is not None:
                level.fill(tick)
                wait_s = max(wait_s, level.wait_s(want))
        if wait_s > 0.0:
            return wait_s
        for level, want in wants[:3]:
            if level is not None:
                level.level -= want
        return 0.0

    def answered(self, output: int) -> None:
        for level in (self.tokens, self.output):
            if level is not None:
                level.level -= output

    def openai_headers(self, tick: float) -> dict[str, str]:
        headers: dict[str, str] = {}
        for name, level in (("requests", self.requests), ("tokens", self.tokens)):
            if level is not None:
                level.fill(tick)
                headers[f"x-ratelimit-limit-{name}"] = str(level.size)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, int(level.level)))
                headers[f"x-ratelimit-reset-{name}"] = go_duration(level.full_s())
        return headers

    def anthropic_headers(self, tick: float, now: float) -> dict[str, str]:
        headers: dict[str, str] = {}
        rows = (
            ("requests", self.requests),
            ("tokens", self.tokens),
            ("input-tokens", self.input),
            ("output-tokens", self.output),
        )
        for name, level in rows:
            if level is not None:
                level.fill(tick)
                reset = datetime.fromtimestamp(now + level.full_s(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                headers[f"anthropic-ratelimit-{name}-limit"] = str(level.size)
                headers[f"anthropic-ratelimit-{name}-remaining"] = str(max(0, int(level.level)))
                headers[f"anthropic-ratelimit-{name}-reset"] = reset
        return headers


def go_duration(seconds: float) -> str:
    """`12ms`, `1.5s`, `6m0s`, as OpenAI writes them."""
    if seconds < 1.0:
        return f"{int(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60.0)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
