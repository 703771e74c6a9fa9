# demo · test · check · bench: each sets up .venv by itself.
# TORCH is the tested build; `make TORCH=torch demo` takes the newest one instead.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUNS := .venv/.runs
TESTS := .venv/.tests

.PHONY: demo test check format bench clean

demo: $(RUNS)
	$(BIN)/lvmae demo --out demo

test: $(TESTS)
	$(BIN)/python -m pytest

check: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TESTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The benchmark of learning takes hours: python benchmarks/learning.py
bench: $(TESTS)
	for b in $(filter-out benchmarks/learning.py benchmarks/watching.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$b || exit 1; done

$(RUNS): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(TESTS): $(RUNS)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo
