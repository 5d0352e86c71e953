# Plain verbs: demo, test, slow, soak, fuzz, check, bench, gpu. Each sets up `.venv` first, but for `gpu`, which uses the Python there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPU_OUT ?= runs/gpu
PACKAGE := build/types/fastfgssl
TEST_WORKERS ?= 2
SOAK_MINUTES ?= 60
FUZZ_MINUTES ?= 60

.PHONY: demo test slow soak fuzz check bench gpu format lock locked clean

$(READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(READY)

demo: $(READY)  ## generate an archive, pretrain on it, score it before and after (no GPU, no download)
	$(BIN)/python tools/demo.py --out demo

test: $(READY)  ## the tests that need no GPU, in $$TEST_WORKERS processes of one thread and some 2 GiB each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow" -n $(TEST_WORKERS) --dist worksteal --durations 20

slow: $(READY)  ## tests of further cases of what `make test` has shown
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n $(TEST_WORKERS) --dist worksteal

soak: $(READY)  ## every fault at every call, those missing, within $$SOAK_MINUTES; the table goes into docs/reliability.md
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/faults/soak.py --minutes $(SOAK_MINUTES)

fuzz: $(READY)  ## hostile bytes guided by coverage, $$FUZZ_MINUTES of CPU time; pip install atheris (Python 3.11 to 3.13)
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/faults/fuzz.py --minutes $(FUZZ_MINUTES)

check: $(READY)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(PACKAGE)  # as it is installed, with kernels/ in it
	mkdir -p $(PACKAGE)
	ln -sf $(CURDIR)/fastfgssl/* $(CURDIR)/kernels $(PACKAGE)
	$(BIN)/python tests/helpers/audit.py
	cd $(PACKAGE)/.. && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --package fastfgssl

locked:  ## sets up .venv from requirements.lock, each file by its checksum: Python 3.11 on Linux x86-64
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

lock:  ## writes requirements.lock anew from constraints.txt, with a pip that need not download for it
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --upgrade pip
	build/lock/bin/pip install --quiet --dry-run --ignore-installed --only-binary :all: \
		--report build/lock.json --constraint constraints.txt --editable '.[test]'
	$(PYTHON) tests/helpers/write_lock.py build/lock.json > requirements.lock

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## every benchmark suite on this machine
	$(BIN)/python tools/bench.py all --json runs/bench.json

gpu:  ## on a machine with a CUDA GPU: its tests and every suite within $$GPU_SECONDS; logs and records in $$GPU_OUT
	GPU_OUT="$(GPU_OUT)" $(PYTHON) tests/gpu/run.py

clean:
	rm -rf demo runs build *.egg-info .pytest_cache .ruff_cache
