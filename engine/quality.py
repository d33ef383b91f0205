"""Quality samples: which results are sampled, how an answer is scored, and how sure the mean is.

`exact`, `regex`, `numeric` and `fields` are scored here. `json_schema` and `function` need libraries or the user's
code: the shell hands them in as `Checks`; and `regex` too, where a search must not take for ever.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal, assert_never

import msgspec

from penstock.engine import fields
from penstock.engine.errors import SpecError
from penstock.engine.fingerprints import short_hash
from penstock.engine.policy import Scorer
from penstock.engine.results import Score
from penstock.engine.texts import normal, text_of

PASS_MARK = 0.5
"""A score from here on counts as passed."""
MAX_REGEX_TEXT = 4_096
"""Characters of an answer that a pattern sees."""
MAX_PATTERN = 1_000
JUDGES = ("judge", "judge pairwise")
"""What scorers are named that are models. No function has such a name: theirs hold a colon."""
_NUMBER = re.compile(r"[-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")

Check = Callable[[Scorer, str, object], float | None]
"""(scorer, answer, expected) → 0…1. Promise: never raises; what goes wrong inside is a 0. None: nobody can say."""
Checks = Mapping[Literal["regex", "json_schema", "function"], Check]


def sampled(item_id: str, share: float) -> bool:
    """Is this item's result a quality sample? Depends on its id alone: a rerun samples the same ones, and a larger
    share holds the smaller one's samples."""
    if share <= 0.0:
        return False
    digest = blake2b(item_id.encode(), digest_size=8, person=b"pst-sample").digest()
    return int.from_bytes(digest) < share * 2**64


def score(scorer: Scorer, answer: str, expected: object, checks: Checks | None = None) -> Score | None:
    """Score one answer. None: it can't be scored (no expected answer, or nobody handed in the check)."""
    value = _value(scorer, answer, expected, checks or {})
    if value is None:
        return None
    value = min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
    return Score(scorer_name(scorer), scorer_version(scorer), value, value >= PASS_MARK)


def score_all(
    scorers: tuple[Scorer, ...], answer: str, expected: object, checks: Checks | None = None
) -> tuple[Score, ...]:
    scores = (score(scorer, answer, expected, checks) for scorer in scorers)
    return tuple(each for each in scores if each is not None)


def _value(scorer: Scorer, answer: str, expected: object, checks: Checks) -> float | None:
    match scorer.type:
        case "exact":
            return None if expected is None else float(normal(answer) == normal(text_of(expected)))
        case "numeric":
            return None if expected is None else _close(answer, text_of(expected), scorer.tolerance)
        case "fields":
            return fields.share(answer, expected, scorer.tolerance)
        case "regex":
            pattern, text = pattern_of(scorer), answer[:MAX_REGEX_TEXT]
            check = checks.get("regex")
            return float(pattern.search(text) is not None) if check is None else check(scorer, text, expected)
        case "json_schema" | "function" as kind:
            check = checks.get(kind)
            return None if check is None else check(scorer, answer, expected)
        case "judge":
            return None  # it takes a call: `engine.flow.steps`
        case _:
            assert_never(scorer.type)


def scorer_name(scorer: Scorer) -> str:
    if scorer.type == "judge":
        return JUDGES[scorer.pairwise]
    return scorer.function if scorer.type == "function" and scorer.function else scorer.type


@lru_cache(maxsize=256)
def scorer_version(scorer: Scorer) -> str:
    """Hash of all settings of a scorer, but for where the right answer is found: an evaluation scores the same rows as
    the job does, and brings their answers itself. (Not of a function's code: that is the user's to version.)"""
    plain = msgspec.structs.asdict(Scorer(scorer.type))
    # by value: msgspec leaves a default out only where it is the very object, which differs from process to process
    told = {name: value for name, value in msgspec.structs.asdict(scorer).items() if value != plain[name]}
    told.pop("expected", None)
    return short_hash(msgspec.json.encode({"type": scorer.type, **told}, order="deterministic"))


# ---- numeric, regex


def number_in(text: str) -> float | None:
    """The last number in a text (answers reason first and conclude last); thousands may be parted by commas."""
    found = _NUMBER.findall(text[-MAX_REGEX_TEXT:])
    return float(found[-1].replace(",", "").replace("_", "")) if found else None


def _close(answer: str, expected: str, tolerance: float) -> float:
    got, want = number_in(answer), number_in(expected)
    return float(got is not None and want is not None and abs(got - want) <= tolerance)


@lru_cache(maxsize=256)
def pattern_of(scorer: Scorer) -> re.Pattern[str]:
    """The compiled pattern. Raises `SpecError` where it is missing, too long, wrong, or could backtrack for ever."""
    pattern = scorer.pattern
    if not pattern:
        raise SpecError("a regex scorer needs a pattern")
    if len(pattern) > MAX_PATTERN:
        raise SpecError(f"a regex scorer's pattern has {len(pattern)} characters; at most {MAX_PATTERN}")
    if repeats_nest(pattern):
        raise SpecError(f"the pattern {pattern!r} repeats a repeat, which can take for ever; write it without")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "[[" may mean something else one day
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise SpecError(f"the pattern {pattern!r} is no regular expression: {error}") from error


def repeats_nest(pattern: str) -> bool:
    """Does a group that holds an open-ended repeat (or an alternative) stand under an open-ended repeat itself?

    Such patterns, `(a+)+` and `(a|aa)*`, are those that backtrack exponentially. Harmless ones are caught as well.
    """
    groups: list[bool] = []
    inside = False
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
        elif char == "[":
            i = _end_of_class(pattern, i)
        elif char == "(":
            groups.append(inside)
            inside = False
        elif char == ")":
            if inside and _open_ended(pattern, i + 1):
                return True
            inside = inside or (groups.pop() if groups else False)
        elif (char == "|" and groups) or (char in "*+{" and _open_ended(pattern, i)):
            inside = True
        i += 1
    return False


def _end_of_class(pattern: str, start: int) -> int:
    """Where the `]` of a character class stands. A `]` right after `[` or `[^` is a member."""
    i = start + (2 if pattern[start + 1 : start + 2] == "^" else 1) + 1
    while i < len(pattern) and pattern[i] != "]":
        i += 2 if pattern[i] == "\\" else 1
    return i


def _open_ended(pattern: str, at: int) -> bool:
    """Is there `*`, `+`, `{n,}` or a large `{n,m}` at this place?"""
    if pattern[at : at + 1] in ("*", "+"):
        return True
    bounds = re.match(r"\{(\d*),(\d*)\}", pattern[at : at + 32])
    return bounds is not None and (not bounds[2] or int(bounds[2]) > 16)


# ---- how sure


class Interval(msgspec.Struct, frozen=True):
    mean: float
    low: float
    high: float


def mean_interval(n: int, total: float, total2: float, confidence: float = 0.95) -> Interval | None:
    """Student's interval of a mean score from n, Σscore, Σscore². None: fewer than two samples."""
    if n < 2:
        return None
    from scipy.stats import t  # late: half a second to import

    mean = total / n
    variance = max(0.0, (total2 - n * mean * mean) / (n - 1))
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def proportion_interval(k: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Wilson's interval of a share: k of n. None: no samples."""
    if n <= 0:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, z2 = k / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))
