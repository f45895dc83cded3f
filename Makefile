# A target per habit. Each sets up .venv by itself, once for every change of pyproject.toml.

# The system's interpreter first: distributions build theirs with profile-guided and link-time optimisation, which
# others often lack, and every figure of the data path follows from it. It may come without pip.
SYSTEM_PYTHON := /usr/bin/python3
PYTHON ?= $(shell $(SYSTEM_PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	{ $(SYSTEM_PYTHON) -m ensurepip --version || python3 -m pip --version; } >/dev/null 2>&1 && \
	echo $(SYSTEM_PYTHON) || echo python3)
# Every test starts processes; without compiled files each would spend a fifth of its start on compiling.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test e2e bench bench-quick bench-growth bench-micro lint format clean

demo: $(READY)
	$(BIN)/ztun demo --check

# Two at a time, a module or the containers whole: much of a run is waiting.
test: $(READY)
	$(BIN)/pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder $(ARGS)

# What make test does with containers, alone.
e2e: $(READY)
	$(BIN)/pytest tests/e2e $(ARGS)

bench: $(READY)
	$(BIN)/python -m tests.bench --json bench.json $(ARGS)

bench-quick: $(READY)
	$(BIN)/python -m tests.bench --quick --json bench-quick.json $(ARGS)

bench-growth: $(READY)
	$(BIN)/python -m tests.bench.growth $(ARGS)

bench-micro: $(READY)
	$(BIN)/pytest tests/bench/micro -o python_files='*.py' --benchmark-columns=ops,median,iqr,rounds \
		--benchmark-sort=name --benchmark-disable-gc $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis bench.json bench-quick.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip 25.1 is the first that installs dependency groups.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || \
		python3 -m pip --quiet --python $(BIN)/python install pip
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@
