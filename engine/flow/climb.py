"""An item's way up a cascade: take the answer, ask the same model once more, or go on to the next. Pure.

A cascade is no step: no answer counts before its signal passes. The cheap answers were paid for and stand among the
attempts. What fails on the way up fails the item as ever: a doubtful answer is not given out for want of a better one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from penstock.engine import signals
from penstock.engine.items import Answer
from penstock.engine.policy import Cascade

SURE = 1e-9
"""Two shares that differ by less are equal."""


class Taken(msgspec.Struct, frozen=True):
    answer: Answer
    why: str


class Doubted(msgspec.Struct, frozen=True):
    """The newest answer of a model that was not believed."""

    model: str
    version: str
    """That gave it: the route may name another version before the item ends."""
    answer: Answer
    signal: float | None
    by: str = ""


class Word(NamedTuple):
    """A judge's, where it is the signal. `level` None: it said nothing of use. `by`: its version."""

    level: float | None = None
    by: str = ""


SILENT = Word()

More = Literal["again", "up"]
"""Ask the same model once more (agreement), or the next one."""


class Climb:
    """What became of one item so far."""

    __slots__ = ("answers", "by", "doubted", "doubts", "signal", "target")

    def __init__(self) -> None:
        self.target = ""
        self.answers: list[Answer | None] = []
        """Of the present model; None: one that keeps to no choice or schema."""
        self.doubts: list[str] = []
        """Why the models before it were not believed."""
        self.doubted: list[Doubted] = []
        self.signal: float | None = None
        """Of the answer that was taken."""
        self.by = ""

    def heard(
        self,
        cascade: Cascade,
        asked: tuple[str, str],
        answer: Answer,
        *,
        valid: bool,
        last: bool,
        judged: Word = SILENT,
    ) -> Taken | More:
        """An answer came from `asked`, a (model, version). `last`: nobody stands above it, its valid answer is
        taken. `judged`: what a judge says of it, where that is the signal."""
        model, version = asked
        target = f"{model}@{version}"
        if last:
            return Taken(answer, "; ".join([*self.doubts, f"answer of {model} taken: the last of the cascade"]))
        if target != self.target:
            self.target, self.answers = target, []
        self.answers.append(answer if valid else None)
        level, taken = self._level(cascade, judged)
        bar = cascade.bar(target, judged.by)
        passes = level is not None and level >= bar - SURE
        said = _said(cascade, level, bar, valid=valid)
        if passes and taken is not None:
            self.signal, self.by = level, judged.by
            return Taken(taken, "; ".join([*self.doubts, f"answer of {model} accepted: {said}"]))
        if cascade.signal == "agreement" and self._may_agree(cascade, target):
            return "again"
        self.doubted.append(Doubted(model, version, taken or answer, level, judged.by))
        self.doubts.append(f"answer of {model} doubtful: {said}")
        return "up"

    def _level(self, cascade: Cascade, judged: Word) -> tuple[float | None, Answer | None]:
        """The signal so far, and the answer that it speaks for."""
        newest = self.answers[-1]
        match cascade.signal:
            case "validity":
                return float(newest is not None), newest
            case "agreement":
                count, first = signals.agreement([None if a is None else a.text for a in self.answers])
                return count / cascade.samples, self.answers[first]
            case "logprob" | "margin" as signal:
                return (None if newest is None else signals.of_tokens(signal, newest.body_json)), newest
            case "judge":
                return judged.level, newest

    def _may_agree(self, cascade: Cascade, target: str) -> bool:
        count, _ = signals.agreement([None if a is None else a.text for a in self.answers])
        left = cascade.samples - len(self.answers)
        return left > 0 and (count + left) / cascade.samples >= cascade.bar(target) - SURE


def _said(cascade: Cascade, level: float | None, bar: float, *, valid: bool) -> str:
    if cascade.signal == "validity":
        return "valid" if level else "not valid"
    if bar > 1.0 and valid:
        return "no threshold holds for it" + (f" ({cascade.signal} {level:.3g})" if level is not None else "")
    if level is None and not valid:
        return "not valid"
    if level is None:
        return "no judge spoke" if cascade.signal == "judge" else f"it tells no {cascade.signal}"
    return f"{cascade.signal} {level:.3g} {'≥' if level >= bar - SURE else '<'} {bar:g}"
