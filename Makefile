# `make demo` decodes a simulated session live, `make test` checks everything.
# The targets set up .venv if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
READY := $(VENV)/.ready

.PHONY: demo test lint test-slow test-gpu soak fuzz faults bench docs clean

demo: $(BASE)  # needs no torch
	$(BIN)/volition demo

# Most tests run in parallel. Tests that compare durations run alone afterwards, even if others failed.
test: $(READY) lint
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder \
		-m 'not slow and not soak and not timing'; \
	parallel=$$?; $(BIN)/python -m pytest -m 'timing and not slow' && exit $$parallel

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests that take a minute or more each; CI runs them after `make test`.
test-slow: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder -m 'slow and not timing'; \
	parallel=$$?; $(BIN)/python -m pytest -m 'slow and timing' && exit $$parallel

# Compares every preset on CUDA with the CPU, and times it (docs/PERFORMANCE.md).
test-gpu: $(READY)
	$(BIN)/python -m training.studies.bench_gpu --json gpu.json

# Decodes four hours of simulated spikes in one go, and repeats the studies on simulations in small.
soak: $(READY)
	$(BIN)/python -m pytest -m soak -s

# Damages input at random. FUZZ is a module of tests/fuzz: bundles, control, frames, nwb_files, …
FUZZ ?= bundles
COUNT ?= 1000
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(FUZZ) --count $(COUNT)

# Causes each fault TIMES times with real processes, and writes docs/RELIABILITY.md.
TIMES ?= 5
faults: $(READY)
	$(BIN)/python -m tests.faults --times $(TIMES) --page docs/RELIABILITY.md

bench: $(READY)
	$(BIN)/volition bench

# The documentation site, in build/site. Diagrams need npm, which brings the script that draws them.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(BASE): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $(BASE)

$(READY): $(BASE)
	$(BIN)/python -m pip install --quiet --editable '.[train,rig,dev,docs]'
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
