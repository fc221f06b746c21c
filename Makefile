# `make demo` and `make test` do all their own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One library thread pool must not fight another; PyTorch keeps its own setting.
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: install demo reference study test lint format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## nano -> nano_slim -> FP16 -> INT8, with a table of what each step costs
	$(BIN)/python -m scripts.demo

reference: $(STAMP)  ## train nano from scratch and replace assets/nano
	$(BIN)/python -m scripts.reference

study: $(STAMP)  ## hours: which weights are kept and what is taught, at equal steps; writes docs/slimming.md
	$(BIN)/python -m scripts.study

# Two processes of one thread each; the tests of a file stay together, they share what took long to make. In the order
# they are listed: the files of one long test would otherwise come last, and one process would wait for the other.
test: lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf outputs data .mypy_cache .ruff_cache .pytest_cache
