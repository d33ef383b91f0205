"""Which settings an engine gets on which machine. No vLLM is needed to say so."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import msgspec
import pytest

from penstock.engine.catalog import Model, Version
from penstock.engine.errors import SpecError
from penstock.workers.engines import vllm_settings
from penstock.workers.engines.vllm_settings import check_path, commit_of, settings


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 fma", "bfloat16"),
        ("Features\t: fp asimd bf16 i8mm", "bfloat16"),
        ("flags\t\t: fpu avx2 fma", "float32"),
        ("model name\t: bf16", "float32"),
    ],
)
def test_a_cpu_that_cannot_multiply_in_16_bits_is_not_asked_to(
    flags: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the job says goes before; a GPU is left to vLLM."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(vllm_settings, "CPU_INFO", tmp_path / "cpuinfo")
    version = Version("v1", "/models/small")
    model = Model("small", (version,), "v1", worker="vllm")
    assert settings(model, version, gpu=False).arguments["dtype"] == dtype
    assert "dtype" not in settings(model, version, gpu=True).arguments
    own = msgspec.structs.replace(model, engine={"dtype": "half"})
    assert settings(own, version, gpu=False).arguments["dtype"] == "half"


def test_a_path_with_nothing_there_is_told_before_vllm_is_asked(tmp_path: Path) -> None:
    """A wrong path took four minutes: five tries, each with vLLM's import. A name is for the hub to know."""
    check_path(Version("v1", str(tmp_path)))
    check_path(Version("v1", "HuggingFaceTB/SmolLM2-135M-Instruct"))
    with pytest.raises(SpecError, match=r"there is no /nowhere/at/all on .*: mend the model's path"):
        check_path(Version("v1", "/nowhere/at/all"))


def test_a_path_that_cannot_be_looked_at_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network folder whose server began anew: the fleet takes a `SpecError` for the end of the matter."""

    def stale(path: str) -> NoReturn:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    monkeypatch.setattr(vllm_settings.os, "stat", stale)
    with pytest.raises(OSError, match="Stale file handle: '/models/small'"):
        check_path(Version("v1", "/models/small"))


A, B = "a" * 40, "b" * 40


class Resolved(str):
    """As `huggingface_hub.ResolvedRevision`: the name that was asked for, and what it stood for."""

    __slots__ = ("resolved",)


@pytest.mark.parametrize(
    ("model", "revision", "resolved", "of_config", "commit"),
    [
        ("o/m", "main", A, None, A),  # vLLM 0.32
        ("o/m", "main", None, A, A),  # 0.26
        ("o/m", A, None, None, A),
        (f"/cache/models--o--m/snapshots/{A}", None, None, None, A),  # HF_HUB_OFFLINE
        ("o/m", "main", A, B, A),  # the config is another repository's
        ("/models/m", None, None, None, None),
        (f"/models/{A}", None, None, None, None),
        ("o/m", "main", None, None, None),
    ],
)
def test_the_commit_that_was_loaded_is_known_by_what_vllm_resolved(
    model: str, revision: str | None, resolved: str | None, of_config: str | None, commit: str | None
) -> None:
    """Not by the name that was asked for: a branch moves."""
    said: str | None = revision
    if resolved is not None:
        said = Resolved(revision)
        said.resolved = resolved
    loaded = SimpleNamespace(model=model, revision=said, hf_config=SimpleNamespace(_commit_hash=of_config))
    assert commit_of(loaded) == commit
