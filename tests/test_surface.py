"""The public face: what may be imported from `penstock`, and that importing it is cheap."""

import inspect
import subprocess
import sys

import penstock

PUBLIC = {
    "BadRecord", "Corrupt", "Fenced", "Held", "Job", "JobHandle", "JobResult", "PenstockError", "Permanent", "Refused",
    "RunOptions", "RunSpec", "RunStatus", "SpecError", "Spent", "Temporary", "arun", "map", "plan", "run", "submit",
}  # fmt: skip


def test_the_public_names_are_these_and_each_is_there() -> None:
    """A name is added on purpose and never taken away by accident."""
    assert set(penstock.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(penstock, name) is not None
    assert set(dir(penstock)) >= PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module."""
    assert not hasattr(penstock, "no_such_thing")


def test_importing_penstock_loads_nothing() -> None:
    """`import penstock` in a notebook or a hook costs a few milliseconds."""
    program = "import sys, penstock\nprint([m for m in sys.modules if m.startswith('penstock.')], 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_the_plain_and_the_awaitable_run_take_the_same_arguments() -> None:
    """`arun` is `run`, awaited."""
    assert inspect.signature(penstock.run) == inspect.signature(penstock.arun)
    assert inspect.iscoroutinefunction(penstock.arun)


def test_public_functions_say_what_they_do() -> None:
    """Every public function, result, handle and error has a docstring."""
    for name in PUBLIC:
        value = getattr(penstock, name)
        if inspect.isfunction(value) or getattr(value, "__module__", "").startswith(
            ("penstock.jobs", "penstock.engine")
        ):
            assert value.__doc__, name
