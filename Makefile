# Every target makes its own environment in .venv from a bare machine with Python 3.11+ and git.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# CPU threads: two one-thread processes are faster than one with two threads on the embedded model.
export OMP_WAIT_POLICY = passive

.PHONY: demo test check docs bench base-model results

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tirkit needs Python 3.11+; run: make PYTHON=python3.11 <target>")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	touch $@

demo: $(READY)
	$(BIN)/tirkit compare configs/demo.toml --arms method,retrieve,autotool,autotraj --out runs/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/test_imports.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python -m benchmarks

base-model: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python -m tirkit.embedded.base --out build/base_model

results: $(READY)
	$(BIN)/tirkit compare configs/tinr_u/embedded.toml --arms all --seeds 0,1,2 --out runs/results
