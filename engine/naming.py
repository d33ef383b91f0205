"""Is the model that an answer names the one that was asked for?"""

from __future__ import annotations

import re
from typing import Literal

Named = Literal["same", "alias", "other"]

_STAMP = re.compile(r"[-@:](\d{4}-\d\d-\d\d|\d{3,4}|\d{6}|\d{8})$")
"""A date, or a number of a release: `gpt-4o-2024-08-06`, `claude-haiku-4-5-20251001`, `mistral-large-2407`."""
_LATEST = "-latest"


def named(pinned: str, answered: str) -> Named:
    """`alias`: the pinned name with its path or a date; what an alias stands for today. Nothing said is the same."""
    mine, theirs = pinned.strip().casefold(), answered.strip().casefold()
    if not theirs or mine == theirs:
        return "same"
    if not _STAMP.search(mine):  # a snapshot stands for itself alone
        mine, theirs = mine.removesuffix(_LATEST), _STAMP.sub("", theirs)
    return "alias" if _ends_with(mine, theirs) or _ends_with(theirs, mine) else "other"


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f"/{name}")
