"""The command line when something is wrong: one line that says what, and what to do next; never a traceback."""

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.engine.errors import Corrupt, Fenced, Held, PenstockError, SpecError, Spent, Temporary
from penstock.jobs import cli, exits
from penstock.jobs.commands import shared
from penstock.jobs.progress import display_for
from penstock.jobs.sandbox import Faults

MINIMAL = """\
source: messages.csv
prompt: "Which department handles this message? {{ text }}"
output: {choices: [delivery, billing]}
models: [sandbox/fast]
sinks: labels.jsonl
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(MINIMAL)
    (tmp_path / "messages.csv").write_text("id,text\n1,hello\n2,where is my parcel\n")
    return tmp_path


def test_help_shows_every_command_and_none_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """What `--help` lists can be called; commands of later work are not shown."""
    assert cli.call(["--help"]) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in text
    for later in ("serve",):
        assert f"  {later} " not in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`penstock NAME --help` answers, in 80 columns."""
    assert cli.call([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: penstock {name}")
    assert max(map(len, text.splitlines())) <= 80
    assert not [line for line in text.splitlines()[1:] if line.endswith("...")]  # what a command does is said whole


def test_help_names_all_that_an_option_takes_and_all_that_a_run_may_end_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.call(["sandbox", "--help"]) == 0
    assert set(Faults.__struct_fields__) <= set(re.findall(r"\w+", capsys.readouterr().out))
    assert cli.call(["run", "--help"]) == 0
    (told,) = re.findall(r"Exit code: ((?:.+\n)+)", capsys.readouterr().out)
    assert re.findall(r"(?:^|,\s+)(\d+) ", told) == ["0", "1", "2", "3", "4", "5", "130"]


def test_what_validate_tells_fits_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No word is cut in two, and what goes on stands under what it goes on from; a pipe gets a line each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(
        "source: kafka://127.0.0.1:9092/requests\nprompt: '{{ text }}'\nmodels: [sandbox/a]\n"
        "sinks: {results: {type: kafka, bootstrap: '127.0.0.1:9092', topic: results, create: true}}\n"
    )
    assert cli.call(["validate", "job.yaml"]) == 0
    piped = capsys.readouterr()
    assert "results.dead_letters (made where it is missing)\n" in piped.out
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert cli.call(["validate", "job.yaml"]) == 0
    shown = capsys.readouterr()
    assert "results.dead_letters (made where it\n" + " " * 21 + "is missing)\n" in shown.out
    assert all(len(line) <= 80 for line in (shown.out + shown.err).splitlines())
    assert (shown.out + shown.err).split() == (piped.out + piped.err).split()


@pytest.mark.parametrize("argv", [["--help"], ["validate", "job.yaml"]])
def test_help_and_validate_load_nothing_heavy(here: Path, argv: list[str]) -> None:
    """They answer in under half a second because Ray, pyarrow, scipy and the clients stay on disk."""
    heavy = "ray torch numpy pyarrow scipy aiohttp boto3 aiokafka pandas"
    program = (
        "import sys\nfrom penstock.jobs.cli import call\n"
        f"code = call({argv!r})\nprint([name for name in {heavy.split()} if name in sys.modules])\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and no list to search through."""
    assert cli.call(["valdate"]) == 2
    assert capsys.readouterr().err.endswith("did you mean 'validate'? See `penstock --help`\n")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["validate", "nothing.yaml"], "nothing.yaml"),
        (["validate"], "Missing argument 'JOB'"),
        (["run", "nothing.yaml"], "there is no job file nothing.yaml"),
        (["run", "job.yaml", "--limit", "0"], "--limit"),
        (["run", "job.yaml", "--set", "date"], "expected KEY=VALUE"),
        (["run", "messages.csv", "--prompt", "{{ text }}", "-o", "x.jsonl"], "--model is missing"),
        (["run", "some-run"], "no run is known in"),
        (["status"], "no run is known in"),
        (["explain", "x", "--run", "nope"], "no run is known in"),
        (["dead-letters", "replay", "--reason", "weather"], "weather"),
        (["costs", "--by", "weather"], "weather"),
        (["submit", "job.yaml", "--address", "http://cluster:8265"], "can't reach"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_two(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    """`error: …` on stderr, nothing on stdout, no traceback."""
    assert cli.call(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_key_that_is_not_set_is_asked_for_before_anything_starts(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is named; its value never appears anywhere."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    (here / "job.yaml").write_text(MINIMAL.replace("sandbox/fast", "anthropic/claude-haiku-4-5"))
    assert cli.call(["run", "job.yaml"]) == 2
    assert "the variable ANTHROPIC_API_KEY is not set" in capsys.readouterr().err


def test_a_valid_job_is_said_to_be_valid(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, where things are, and notes on stderr so that they are not mistaken for data."""
    assert cli.call(["validate", "job.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("job.yaml is valid\n")
    assert "labels.dead_letters.jsonl" in out
    assert all(line.startswith("note: ") for line in err.splitlines())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("x"), 2),
        (Held("x"), 2),
        (Spent("x"), 3),
        (Temporary("x"), 4),
        (Fenced("x"), 4),
        (Corrupt("x"), 4),
        (PenstockError("x"), 1),
    ],
)
def test_the_type_of_an_error_is_its_exit_code(error: PenstockError, code: int) -> None:
    """SURFACES §4."""
    assert exits.of_error(error) == code


def test_an_error_of_ours_is_one_line_too(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1; the traceback is there for who asks."""

    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr("penstock.jobs.spec.load", broken)
    assert cli.call(["validate", "job.yaml"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected RuntimeError: a bug")
    assert "Traceback" not in err
    monkeypatch.setenv("PENSTOCK_DEBUG", "1")
    assert cli.call(["validate", "job.yaml"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_first_job_is_written_and_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`init` makes three files that pass `validate`, and never overwrites any."""
    monkeypatch.chdir(tmp_path)
    assert cli.call(["init", "first"]) == 0
    monkeypatch.chdir(tmp_path / "first")
    assert cli.call(["validate", "job.yaml"]) == 0
    assert cli.call(["models"]) == 0
    table = capsys.readouterr().out.rpartition("tier  ")[2]
    assert cli.call(["models", "catalog.yaml"]) == 0
    assert capsys.readouterr().out.rpartition("tier  ")[2] == table
    before = Path("job.yaml").read_bytes()
    capsys.readouterr()
    assert cli.call(["init"]) == 2
    assert "never overwrites" in capsys.readouterr().err
    assert Path("job.yaml").read_bytes() == before


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Editors read it as it is printed."""
    import json

    assert cli.call(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"].startswith("https://json-schema.org/")


def test_the_schemas_of_records_are_printed_as_json_and_as_avro(capsys: pytest.CaptureFixture[str]) -> None:
    """All sinks', or one alone for tools that want a file."""
    import json

    assert cli.call(["schema", "records"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"results", "costs", "quality", "dead_letters", "review"}
    assert cli.call(["schema", "records", "--format", "avro", "--sink", "costs"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "CostRecord"
    assert cli.call(["schema", "--sink", "costs"]) == 2
    assert "penstock schema records" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(here: Path) -> None:
    """`penstock schema | head` is quiet."""
    command = f"{sys.executable} -m penstock.jobs.cli schema | head -c 10"
    done = subprocess.run(command, shell=True, cwd=here, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_an_exit_code_stays_when_nobody_reads(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`penstock run --json | true` ends with what the run ended with; so does a command whose terminal was closed."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        shared.print_json({"state": "too_many_dead_letters"})
        shared.echo("five dead letters")

    class Terminal(io.StringIO):
        def write(self, s: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("sys.stderr", Terminal())
    assert cli.call(["schema", "--sink", "costs"]) == 2


def test_a_disk_that_is_full_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """`penstock costs > report` must not end well with half a report; a run's progress may be lost."""
    for tell in (lambda: shared.print_json([1]), lambda: shared.console().print("a report")):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr("sys.stdout", full)
            with pytest.raises(Temporary, match="No space left on device"):
                tell()
    with open("/dev/full", "w") as full:
        display_for(full).say("half done")
