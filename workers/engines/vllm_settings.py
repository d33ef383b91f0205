"""`engine: {…}` of a model in the catalogue → vLLM's `EngineArgs`, with defaults that suit the machine."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from penstock.engine.catalog import EngineValue, Model, Version
from penstock.engine.errors import SpecError
from penstock.engine.naming import is_commit

OURS = ("processes",)
"""Names in `engine` that are ours; all others are vLLM's."""

RESERVED = {
    "model": "it is the version's `model`",
    "revision": "it is the version's `revision`",
    "served_model_name": "it is the model's name in the catalogue",
    "disable_log_stats": "the engine keeps its own counters",
    "scheduling_policy": "realtime items go first, so it is always `priority`",
}

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""Of x86 and ARM, as Linux names them."""

CPU_DEFAULTS: dict[str, EngineValue] = {
    "enforce_eager": True,
    # vLLM takes 128 on a CPU and caches whole blocks only: the shared beginning of a labelling prompt is shorter. With
    # 32, rows that share 100 tokens and answer with 3 took a fifth of the CPU time; long answers none the more.
    "block_size": 32,
    "max_num_seqs": 64,
}
# With an explicit size and no compilation vLLM skips its warm-up: seconds of a start. Each GiB takes 1.6 s to be
# touched; either size holds 23,000 tokens of SmolLM2-135M (23 kB a token in 16 bits).
BF16_DEFAULTS: dict[str, EngineValue] = {"dtype": "bfloat16", "kv_cache_memory_bytes": 1 << 29}
# A CPU that can't multiply in 16 bits makes up for it number by number: with AVX2 alone float32 was five times faster
# when cold and three times when warm.
FLOAT32_DEFAULTS: dict[str, EngineValue] = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 30}

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM reports its use to its makers otherwise
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before vLLM is imported, where the operator has not set them."""


class Settings(msgspec.Struct, frozen=True):
    """What one engine is built from."""

    path: str
    """A local folder or a Hugging Face name."""
    revision: str | None
    arguments: dict[str, EngineValue]
    """Names of `EngineArgs`."""
    processes: bool
    """True: the engine lives in processes of its own, so that a GPU need not wait for the event loop."""


def check_path(version: Version) -> None:
    """Raises `SpecError` where the model is a path and nothing is there: vLLM takes a minute to find that out, each of
    the times that it is tried. Raises `OSError` where that can't be told now, of a mount that is away, say."""
    if not version.model.startswith("/"):
        return
    try:
        os.stat(version.model)
    except (FileNotFoundError, NotADirectoryError) as error:
        nothing = f"there is no {version.model} on {platform.node()}: mend the model's path, or put it there"
        raise SpecError(nothing) from error


def settings(model: Model, version: Version, *, gpu: bool, resolve: Callable[[str], str] = str) -> Settings:
    """Read the model's `engine`. `resolve` turns the version's `model` into what vLLM should load (a cached folder).

    Raises `SpecError` for a name that is neither ours nor vLLM's.
    """
    given = dict(model.engine)
    processes = _flag(model, given.pop("processes", gpu))
    _refuse_reserved(model, given)
    return Settings(
        path=resolve(version.model),
        revision=version.revision,
        arguments=given if gpu else {**cpu_defaults(), **given},
        processes=processes,
    )


def engine_args(chosen: Settings, name: str, *, asynchronous: bool = False) -> Any:
    """vLLM's own `EngineArgs`. Raises `SpecError` for names and values that vLLM doesn't know."""
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    cls: Any = AsyncEngineArgs if asynchronous else EngineArgs
    _refuse_unknown(name, chosen.arguments, list(cls.__dataclass_fields__))
    try:
        return cls(
            model=chosen.path,
            # A folder has no revisions; "main" for one is what people write.
            revision=None if Path(chosen.path).is_dir() else chosen.revision,
            served_model_name=name,
            disable_log_stats=not asynchronous,  # in process, the scheduler itself is asked
            scheduling_policy="priority",
            structured_outputs_config=_compact_json(),
            **{"use_tqdm_on_load": False, "enable_prefix_caching": True, **chosen.arguments},
        )
    except (TypeError, ValueError) as error:
        raise SpecError(f"model {name}: vLLM refuses its engine settings: {error}") from error


def commit_of(model_config: Any) -> str | None:
    """The hub's commit of the weights that vLLM has loaded; None: a folder of one's own has none, nor has another kind
    of hub. vLLM resolves a branch once, at the load: release 0.32 keeps that beside the revision's name, 0.26 leaves it
    to transformers, and where the hub may not be asked, a model is its folder `…/snapshots/<commit>`."""
    revision, parts = model_config.revision, Path(model_config.model).parts
    snapshot = parts[parts.index("snapshots") + 1 :][:1] if "snapshots" in parts else ()
    config = getattr(model_config.hf_config, "_commit_hash", None)
    said = (getattr(revision, "resolved", None), revision, *snapshot, config)
    return next((each for each in said if is_commit(each)), None)


def batch_use() -> Any:
    """How vLLM is told that it is used: it sizes its batches by that. Left to itself it takes 128 sequences and 2,048
    tokens at once; as `vllm.LLM` does, 256 and 8,192, on a GPU of 70 GiB or more 1,024 and 16,384."""
    from vllm.usage.usage_lib import UsageContext

    return UsageContext.LLM_CLASS


def _compact_json() -> Any:
    """Without this a small model may fill its answer with blanks between two tokens of JSON, for ever (seen).
    One backend serves an engine for life; guidance knows the most of JSON Schema."""
    from vllm.config import StructuredOutputsConfig

    return StructuredOutputsConfig(backend="guidance", disable_any_whitespace=True)


def prepare_environment(chosen: Settings, *, in_process: bool) -> None:
    """Must run before vLLM is imported in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    if chosen.arguments.get("enforce_eager") and not has_gpu():
        # vLLM compiles some small functions on first use all the same (log probabilities). Where there is no C++
        # compiler, the first request that asked for them would kill the engine (seen).
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if Path(chosen.path).is_dir():
        # A folder needs no hub; without this, vLLM asks for files that aren't there and waits for time-outs.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def cpu_defaults() -> dict[str, EngineValue]:
    """vLLM's settings for the CPU of this machine."""
    by_precision = BF16_DEFAULTS if _multiplies_bf16() else FLOAT32_DEFAULTS
    return {**CPU_DEFAULTS, **by_precision}


def _multiplies_bf16() -> bool:
    try:
        said = CPU_INFO.read_text()
    except OSError:
        return False
    return any(
        not BF16_FLAGS.isdisjoint(line.partition(":")[2].split())
        for line in said.splitlines()
        if line.startswith(("flags", "Features"))
    )


def has_gpu() -> bool:
    """Whether vLLM would use one here, found without importing it."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def _flag(model: Model, value: EngineValue) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"model {model.name}: engine.processes must be true or false, not {value!r}")
    return value


def _refuse_reserved(model: Model, given: dict[str, EngineValue]) -> None:
    for name in given:
        if name in RESERVED:
            raise SpecError(f"model {model.name}: engine.{name} can't be set: {RESERVED[name]}")


def _refuse_unknown(model: str, given: Iterable[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *OURS], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SpecError(f"model {model}: vLLM has no engine setting named {name}{hint}")
