.PHONY: install demo demo-quick test fast check docs bench soak dev
UV ?= $(shell command -v uv 2>/dev/null || echo .venv-uv/bin/uv)

install: .venv/.installed

.venv/.installed: pyproject.toml uv.lock
	@command -v uv >/dev/null 2>&1 || test -x .venv-uv/bin/uv || { \
	  echo "uv is not installed: putting it into .venv-uv/"; python3 -m venv .venv-uv && .venv-uv/bin/pip install -q uv; }
	$(UV) sync -q
	@touch $@

test: install
	.venv/bin/pytest

fast: install
	.venv/bin/pytest tests/engine

check: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports
