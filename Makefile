# demo · test · check · docs · bench: each sets up .venv by itself.
# TORCH is the tested build; `make TORCH=torch demo` takes the newest one instead.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUNS := .venv/.runs
TESTS := .venv/.tests

.PHONY: demo test check docs format bench gpu-train lock docker clean

demo: $(RUNS)
	$(BIN)/lvmae demo --out demo

test: $(TESTS)
	$(BIN)/python -m pytest

check: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/python tools/plain_english.py
	$(MAKE) docs

# A broken link, or a name in docs/api.md that is gone, is a failure.
docs: $(TESTS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir .venv/.site

format: $(TESTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Those that say what they want by themselves; learning and memory take long and scale has two parts, each with a command of its own.
BENCHES := training_step data_loading long_sequences search probe_speed embed fuzz odd_files crashes

bench: $(TESTS)
	for b in $(BENCHES); do $(BIN)/python benchmarks/$$b.py || exit 1; done

# With the machine's own Python: what a machine with a GPU has, and no network. It says what is missing.
gpu-train:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_train.py

$(RUNS): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(TESTS): $(RUNS)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# On a machine with a GPU, from a checkout, with the Python that has its torch: `make gpu-embed PYTHON=python3`.
gpu-embed:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_embed.py

# The tested versions with hashes, requirements/*.txt; needs uv.
lock: $(TESTS)
	$(BIN)/python tools/lock.py

# Both images, where Docker is.
docker:
	docker build -t lvmae .
	docker build -t lvmae:cuda --build-arg TORCH=cuda .

clean:
	rm -rf .venv demo
