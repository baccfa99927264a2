PYTHON ?= python3
BIN := .venv/bin
# Compiled programs of tests are kept between runs.
CACHE := JAX_COMPILATION_CACHE_DIR=$(or $(JAX_COMPILATION_CACHE_DIR),$(CURDIR)/.cache/xla)

.PHONY: demo test lint smoke endurance

demo: .venv/.installed
	$(BIN)/python -m lmseg_jax.main --config configs/demo.py --workdir runs/demo

test: .venv/.installed-test
	$(CACHE) $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

smoke: .venv/.installed-test
	$(CACHE) $(BIN)/python -m tests.smoke

endurance: .venv/.installed-test
	$(CACHE) $(BIN)/python -m tests.endurance

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/.installed
