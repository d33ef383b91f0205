"""What the docs say is true: examples load, commands exist, and nothing a person may write is undocumented."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from penstock.connectors import settings
from penstock.engine.catalog import Limits
from penstock.engine.review import Review
from penstock.jobs import spec as job_spec
from penstock.jobs.cli import COMMANDS
from penstock.jobs.sandbox import read_settings
from penstock.jobs.spec import fields
from penstock.workers.runspec import Execution

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
JOB_FILE = (ROOT / "docs" / "job-file.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

_FENCE = re.compile(r"^```yaml([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")


def _examples() -> list[tuple[str, str, str]]:
    """(page, mark, text) of every YAML example."""
    return [(p.name, m[1].strip(), m[2]) for p in PAGES for m in _FENCE.finditer(p.read_text())]


def _jobs() -> list[tuple[str, str]]:
    return [(page, text) for page, mark, text in _examples() if mark not in ("catalog", "sandbox")]


@pytest.mark.parametrize(("page", "text"), _jobs())
def test_a_job_in_the_docs_is_valid(page: str, text: str, tmp_path: Path) -> None:
    """Every example loads as it stands, with the docs' own catalogue beside it."""
    catalog = next(text for _, mark, text in _examples() if mark == "catalog")
    (tmp_path / "catalog.yaml").write_text(catalog)
    (tmp_path / "job.yaml").write_text(text)
    sets = {"date": "2026-11-24"} if "vars:" in text else {}
    loaded = job_spec.load(tmp_path / "job.yaml", sets=sets)
    assert set(loaded.sinks) == {"results", "costs", "quality", "dead_letters"}, page


def _fields(struct: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(struct)]


STRUCTS: list[type[msgspec.Struct]] = [
    *(
        value
        for value in vars(fields).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == fields.__name__
    ),
    settings.FilesSource,
    settings.FilesSink,
    settings.MemorySource,
    settings.Connection,
    settings.KafkaSource,
    settings.KafkaSink,
    settings.CreateTopic,
    settings.S3Source,
    settings.S3Sink,
    Limits,
    Execution,
    Review,
]


def test_the_check_of_fields_sees_the_whole_job_file() -> None:
    """A module that moves must not leave the next test with nothing to check."""
    assert {fields.JobFile, fields.CatalogFile, fields.ModelFile, fields.TaskFile, fields.WallFile} <= set(STRUCTS)
    assert len(COMMANDS) > 10
    assert len(_jobs()) >= 3


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda s: s.__name__)
def test_every_field_of_a_job_file_is_documented(struct: type[msgspec.Struct]) -> None:
    """A field that `docs/job-file.md` does not name in code is a field that nobody finds."""
    named = {word for code in _CODE.findall(JOB_FILE) for word in re.findall(r"\w+", code)}
    missing = [field for field in _fields(struct) if field not in named]
    assert not missing, f"docs/job-file.md does not name {missing} of {struct.__name__}"


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    """The table in `docs/operations.md` is the command line's."""
    documented = set(re.findall(r"^\| `penstock ([\w-]+)` \|", OPERATIONS, re.MULTILINE))
    assert documented == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_that_pages_mention_exist(page: Path) -> None:
    """No page tells of a command that isn't there."""
    mentioned = set(re.findall(r"(?:^|`|&& )penstock ([a-z][\w-]+)", page.read_text(), re.MULTILINE))
    assert mentioned <= set(COMMANDS)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist."""
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link and not link.startswith("#")]
    missing = [link for link in links if not (page.parent / link.split("#")[0]).exists()]
    assert not missing


def test_sandbox_settings_in_the_docs_are_read(tmp_path: Path) -> None:
    """As `penstock sandbox --settings` reads them."""
    for _, mark, text in _examples():
        if mark == "sandbox":
            (tmp_path / "settings.yaml").write_text(text)
            assert read_settings(tmp_path / "settings.yaml").models


def test_exit_codes_are_documented_as_they_are() -> None:
    """Every code that a command may end with stands in the table."""
    from penstock.jobs import exits

    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", OPERATIONS, re.MULTILINE)}
    assert documented == codes


def test_the_readme_names_the_pythons_that_are_taken() -> None:
    """Whoever has another one finds out before the installation fails."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "Python 3.11, 3.12 or 3.13 " in (ROOT / "README.md").read_text()
