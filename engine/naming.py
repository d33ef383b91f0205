"""Is the model that an answer names the one that was asked for? And can a name come to mean another one?"""

from __future__ import annotations

import re
from typing import Literal

Named = Literal["same", "alias", "other"]

_STAMP = re.compile(r"[-@:](\d{4}-\d\d-\d\d|\d{3,4}|\d{6}|\d{8})$")
"""A date, or a number of a release: `gpt-4o-2024-08-06`, `claude-haiku-4-5-20251001`, `mistral-large-2407`."""
LATEST = "-latest"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def named(pinned: str, answered: str) -> Named:
    """`alias`: the pinned name with its path or a date; what an alias stands for today. Nothing said is the same."""
    if not answered or answered == pinned:
        return "same"
    mine, theirs = pinned.strip().casefold(), answered.strip().casefold()
    if not theirs or mine == theirs:
        return "same"
    if not _STAMP.search(mine):  # a snapshot stands for itself alone
        mine, theirs = mine.removesuffix(LATEST), _STAMP.sub("", theirs)
    return "alias" if _ends_with(mine, theirs) or _ends_with(theirs, mine) else "other"


def is_commit(revision: str | None) -> bool:
    """A whole commit hash. All else (a branch, a tag, the start of a hash) may come to mean other weights."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_hub_name(model: str) -> bool:
    """`owner/name` of a hub, rather than a folder or a URL: only a hub knows revisions."""
    return not model.startswith(("/", "./", "../", "~")) and "://" not in model


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f"/{name}")
