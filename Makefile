# Everything a developer, a visitor or CI runs. Needs Python 3.11 or newer and make; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
FLOORS := .venv-floors
BENCH := .venv-bench
BIN := $(VENV)/bin
PYTEST_ARGS ?=
BENCH_ARGS ?=
MINUTES ?= 30
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --no-header --no-annotate

.DEFAULT_GOAL := help
.PHONY: help demo test lint format suite test-floors faults soak bench bench-scale lock build clean

help: ## explain the targets
	@echo "agents_pg_session: sessions for the OpenAI Agents SDK on PostgreSQL"
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  PYTHON=python3.13 make test   takes another Python"
	@echo "  AGENTS_PG_TEST_URL=postgresql://… make test   uses your server instead of starting one"

demo: $(VENV)/ready ## a support agent chats, waits for an approval, resumes; then look at its rows
	@$(BIN)/python examples/quickstart.py

test: lint suite test-floors ## lint, types, the whole suite on SQLite and real PostgreSQL, and again on the oldest dependencies

lint: $(VENV)/ready ## format, lint and strict types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/ready ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

suite: $(VENV)/pgbouncer/ready ## the suite on the newest dependencies (PYTEST_ARGS='-k name' for a part of it)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-floors: $(FLOORS)/pgbouncer/ready ## the suite on the oldest dependencies we accept, SQLAlchemy 2.0 among them
	$(FLOORS)/bin/python -m pytest --ignore=tests/migrations/test_wheel.py --ignore=tests/postgres/test_plans.py $(PYTEST_ARGS)

faults: $(VENV)/pgbouncer/ready ## everything that can go wrong, thoroughly: every cut, crashes, failover, poolers, bad input
	$(BIN)/python -m pytest tests/faults tests/hostile tests/contract --thorough --timeout=3600 $(PYTEST_ARGS)

soak: $(VENV)/ready ## mixed load with random faults for 30 minutes, then a recount (MINUTES=5 for less)
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

bench: $(BENCH)/redis/ready ## side by side with what people use now, 10 minutes; fills docs/benchmarks.md
	$(BENCH)/bin/python -m benchmarks $(BENCH_ARGS)

bench-scale: $(BENCH)/redis/ready ## ten million items, a million appends: an hour or so; `make bench` shows it from then on
	$(BENCH)/bin/python -m benchmarks --scale $(BENCH_ARGS)

lock: $(VENV)/ready ## choose versions anew: the newest for requirements/dev.txt, the oldest for floors.txt
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --upgrade --extra cli --group demo --group test --group lint --group plot --output-file requirements/dev.txt
	$(COMPILE) --upgrade --extra cli --extra psycopg --group demo --group test --resolution lowest-direct --output-file requirements/floors.txt
	$(COMPILE) --upgrade --group demo --group test --group lint --group plot --group bench \
	    --constraint requirements/dev.txt --output-file requirements/bench.txt

build: $(VENV)/ready ## wheel and source distribution into dist/
	$(BIN)/python -m hatchling build

clean: ## remove what make has made
	rm -rf $(VENV) $(FLOORS) $(BENCH) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/ready: pyproject.toml requirements/dev.txt
	$(call environment,$(VENV),requirements/dev.txt)

$(FLOORS)/ready: pyproject.toml requirements/floors.txt
	$(call environment,$(FLOORS),requirements/floors.txt)

$(BENCH)/ready: pyproject.toml requirements/bench.txt
	$(call environment,$(BENCH),requirements/bench.txt)

%/redis/ready: %/ready benchmarks/fetch_redis.py tests/debian.py
	$*/bin/python -m benchmarks.fetch_redis
	@mkdir -p $(@D) && touch $@

# PgBouncer is for the tests only, and on Debian only: `make demo` does without.
%/pgbouncer/ready: %/ready tests/fetch_pgbouncer.py tests/debian.py
	$*/bin/python -m tests.fetch_pgbouncer
	@mkdir -p $(@D) && touch $@

define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try PYTHON=python3.13 make …")'
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(1)/ready
endef
