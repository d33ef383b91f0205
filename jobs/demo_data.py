"""Real text that every machine has: what the installed Python packages say of themselves.

A package's `Topic ::` classifiers, where they name exactly one clear topic, are its true label. A label like
"Software Development :: Libraries" says nothing of the subject, so it is none; two topics are none either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["topic", "shorten", "rewrite"]

TOPICS: dict[str, str] = {
    "science": "numbers, statistics, machine learning",
    "system": "operating systems, processes, networks of machines",
    "testing": "testing and checking programs",
    "text": "text, markup and file formats",
    "web": "HTTP, web sites and the internet",
}
"""Label → what it means. The five that have enough packages in both environments of the demo to say anything
(measured: 40 of 100 packages in the small one, 91 of 213 in the one with vLLM)."""

_PREFIXES: tuple[tuple[str, str], ...] = (
    ("Scientific/Engineering", "science"),
    ("Software Development :: Testing", "testing"),
    ("Software Development :: Quality Assurance", "testing"),
    ("Internet", "web"),
    ("System", "system"),
    ("Text Processing", "text"),
    ("File Formats", "text"),
    ("Documentation", "text"),
    ("Security", "other"),
    ("Database", "other"),
    ("Multimedia", "other"),
    ("Communications", "web"),
)
"""Classifier prefix → topic. `other` makes a second topic visible, so that the row has no label."""

_TOPIC = "Topic :: "
_MAX_TEXT = 900
"""Characters of text a row carries: about 250 tokens, so that a 135M model on two cores answers 90 rows in seconds."""
_MAX_HEAD = 500
_MIN_PASSAGE = 120
"""A shorter paragraph is mostly a heading or a link."""
_PASSAGES = 4
"""Passages taken of one package: a few hundred rows in all."""
_REWRITES = 12
"""Descriptions sent to Tier 1: enough to see, few enough to cost cents."""
_MAX_DESCRIPTION = 60_000
"""Characters of a description looked into; some packages carry their whole changelog."""

_MARKUP = (
    (re.compile(r"`{1,2}([^`\n<]{1,200}?)\s?(?:<[^>\n]{0,400}>)?`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"<!--.*?-->|<[^>\n]{1,400}>", re.DOTALL), " "),
    (re.compile(r"!\[[^\]\n]{0,200}\]\([^)\n]{0,600}\)"), " "),
    (re.compile(r"\[([^\]\n]{1,200})\]\([^)\n]{0,600}\)"), r"\1"),
    (re.compile(r"https?://\S+"), " "),
    (re.compile(r"[ \t\r\f\v]+"), " "),
)
_NOISE = re.compile(r"^\s*([#=\-*~^.|+>`:\[\]]|\d+\.|import |from |async |await |def |class |pip |\$ |>>> |@)")


class Package(msgspec.Struct, frozen=True):
    name: str
    summary: str
    passages: tuple[str, ...]
    """Paragraphs of prose out of the description, trimmed of markup."""
    topic: str | None


class Row(msgspec.Struct, frozen=True):
    """One line of the demo's input."""

    id: str
    kind: Kind
    package: str
    text: str
    label: str | None = None
    """The true topic; set on every `topic` row."""
    sensitivity: str = "public"


def topic_of(classifiers: Iterable[str]) -> str | None:
    """The one clear topic, or None where there is none or more than one."""
    said = [c.removeprefix(_TOPIC) for c in classifiers if c.startswith(_TOPIC)]
    found = {topic for text in said if (topic := _topic(text)) is not None}
    only = found.pop() if len(found) == 1 else None
    return only if only in TOPICS else None


def _topic(text: str) -> str | None:
    return next((topic for prefix, topic in _PREFIXES if text.startswith(prefix)), None)


def passages_of(description: str) -> tuple[str, ...]:
    """The first paragraphs of prose, without headings, lists, code, badges and links."""
    plain = description[:_MAX_DESCRIPTION]
    for pattern, by in _MARKUP:
        plain = pattern.sub(by, plain)
    good = (_tidy(part) for part in re.split(r"\n\s*\n", plain) if not _NOISE.match(part))
    return tuple(part[:_MAX_TEXT] for part in good if _is_prose(part))[:_PASSAGES]


def _tidy(part: str) -> str:
    return " ".join(part.split())


def _is_prose(part: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in part)
    return len(part) >= _MIN_PASSAGE and letters > 0.85 * len(part)


def installed(paths: Sequence[str] | None = None) -> list[Package]:
    """Every installed package once, by name. `paths`: where to look; None: this interpreter's."""
    found: dict[str, Package] = {}
    for dist in metadata.distributions() if paths is None else metadata.distributions(path=list(paths)):
        package = _package(dist)
        if package is not None:
            found.setdefault(package.name.lower(), package)
    return [found[name] for name in sorted(found)]


def _package(dist: metadata.Distribution) -> Package | None:
    about = dist.metadata
    name, summary = _first(about, "Name"), _first(about, "Summary")
    if not name or name == "penstock":
        return None
    text = _first(about, "Description") or _payload(dist)
    return Package(name, _tidy(summary), passages_of(text), topic_of(about.get_all("Classifier") or []))


def _first(about: metadata.PackageMetadata, field: str) -> str:
    values = about.get_all(field) or [""]
    return str(values[0]).strip()


def _payload(dist: metadata.Distribution) -> str:
    """The description where the metadata file carries it as its body."""
    _, _, body = (dist.read_text("METADATA") or "").partition("\n\n")
    return body


def rows(packages: Sequence[Package], *, kinds: Sequence[Kind] = ("topic", "shorten", "rewrite")) -> list[Row]:
    """The demo's rows, in the order of the packages' names: the same packages give the same rows."""
    made = [*_topics(packages), *_shorten(packages), *_rewrites(packages)]
    return sorted((row for row in made if row.kind in kinds), key=lambda row: (row.package.lower(), row.id))


def _topics(packages: Sequence[Package]) -> Iterator[Row]:
    for p in packages:
        if p.topic is not None and (text := _about(p)):
            yield Row(f"{p.name}:topic", "topic", p.name, text, p.topic)


def _about(p: Package) -> str:
    """What a package says of itself, without its classifiers (they are the answer)."""
    return ". ".join(part.rstrip(".") for part in (f"{p.name}: {p.summary}", *p.passages[:1]) if part)[:_MAX_HEAD]


def _shorten(packages: Sequence[Package]) -> Iterator[Row]:
    for p in packages:
        for n, text in enumerate(p.passages, 1):
            yield Row(f"{p.name}:passage-{n}", "shorten", p.name, text)


def _rewrites(packages: Sequence[Package]) -> Iterator[Row]:
    described = [p for p in packages if p.passages]
    step = max(1, len(described) // _REWRITES)
    for p in described[::step][:_REWRITES]:
        yield Row(f"{p.name}:rewrite", "rewrite", p.name, p.passages[0])


def write(path: Path, lines: Sequence[Row]) -> int:
    """Write the rows as JSON lines; returns how many. The same rows give the same bytes, so a resume finds its input
    unchanged."""
    encoder = msgspec.json.Encoder()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(encoder.encode(line) + b"\n" for line in lines))
    return len(lines)
