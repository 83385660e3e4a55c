# Everything a newcomer needs: `make demo`, `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Which build of torch, by the names of uv's --torch-backend: cpu, cu128, auto, ...; empty: as the
# package index has it. Without an NVIDIA driver the CPU build will do, which is gigabytes smaller.
TORCH ?= $(if $(wildcard /proc/driver/nvidia/version),,cpu)
PEERS := .venv-peers
LATEST := .venv-latest
PEERS_READY := $(PEERS)/.ready
PORT ?= 3000
# One more than there are cores in most places: some tests wait for servers and processes.
TEST_WORKERS ?= 3
PYTEST = -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

INSTALL_TORCH = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt torch torchvision

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-latest sanitize lint docs bench bench-rows bench-many scale profile peers bench-peers signal torture ui clean

help:  ## list the targets
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { line = sprintf("  make %-12s", $$1); n = split($$2, words, " "); \
	  for (i = 1; i <= n; i++) { if (length(line words[i]) > 78) { print line; line = sprintf("%19s", "") } \
	  line = line " " words[i] } print line }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt scripts/name_definitions.py $(wildcard eval_ingest/*/_*.c)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(if $(TORCH),UV_HTTP_RETRIES=0 $(INSTALL_TORCH) --torch-backend $(TORCH) 2>/dev/null || echo \
	  "torch's $(TORCH) build can't be had from here: taking the one of the package index")
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --reinstall-package dagster --editable '.[ingest,olmoearth,dask,s3,hub,dev]'
	$(BIN)/python scripts/name_definitions.py
	@touch $@

demo: $(READY)  ## a small rslearn dataset goes in, a score comes out
	@sh scripts/demo.sh $(BIN)

test: $(READY)  ## every test, those beside the existing code after `make peers`; TEST_WORKERS=2
	$(BIN)/python $(PYTEST)

# What needs neither a server, nor a process of its own, nor an ingest.
FAST := $(filter-out %/test_store_roots.py %/test_decoding_storages.py, $(wildcard $(addprefix eval_ingest_tests/test_, \
  architecture.py core_*.py inference_*.py decoding_*.py store_*.py report_terminal.py settings.py \
  sweep_metrics.py)))

# None of them waits for anything: a worker more than there are cores would only import all once more.
test-fast: TEST_WORKERS = 2
test-fast: $(READY)  ## the tests of rules and formats, under a minute
	$(BIN)/python $(PYTEST) $(FAST)

# By pip, which has no versions of ours to go by. To hold one back: WITH='torch==2.9.1 torchvision==0.24.1'.
test-latest:  ## every test with the newest of everything that our ranges allow; WITH='torch==2.9.1'
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade pip
	$(LATEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
	  --editable '.[ingest,olmoearth,dask,s3,hub,dev]' $(WITH)
	$(LATEST)/bin/python -m pip list --format freeze > $(LATEST)/versions.txt
	$(LATEST)/bin/python $(PYTEST) $(TESTS)

sanitize: $(READY)  ## the compiled loops' tests under AddressSanitizer and UBSan
	SANITIZE=1 $(BIN)/python -m pytest -q -rs eval_ingest_tests/test_sanitizers.py

lint: $(READY)  ## formatting, types, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## how fast it is, beside rslearn; WINDOWS=1000, GROWTH="250 1000 4000", MANY=100000 or PLACES=1
	$(BIN)/python -m benchmarks.bench --windows $${WINDOWS:-250} --growth $${GROWTH:-} --many $${MANY:-0} $${PLACES:+--places}

bench-rows: $(READY)  ## an index of so many windows split, judged and written, without pixels; ROWS=1000000
	$(BIN)/python -m benchmarks.rows --rows $${ROWS:-1000000}

bench-many: $(READY)  ## looking at a root of so many datasets, and Dagster's page of them; DATASETS=1000
	$(BIN)/python -m benchmarks.many_datasets --datasets $${DATASETS:-1000}

profile: $(READY)  ## where an ingest's processor time goes; WINDOWS="1000 4000", AT=/dev/shm or SOURCE=/data/crops
	$(BIN)/python -m benchmarks.profile --windows $${WINDOWS:-1000} $${AT:+--at $$AT} $${SOURCE:+--source $$SOURCE}

scale: $(READY)  ## an ingest over dask, where each request takes 30 ms; WORKERS="1 2 4" WINDOWS=1000 AT=/dev/shm
	$(BIN)/python -m benchmarks.scale --workers $${WORKERS:-1 2 4} --windows $${WINDOWS:-1000} $${AT:+--at $$AT}

peers: $(PEERS_READY)  ## make .venv-peers: the existing OlmoEarth eval code, which some tests compare with; 0.6 GB

# Its extras don't resolve: [eval] asks for versions that exclude each other. What is installed
# without dependencies is only imported, never run.
$(PEERS_READY): constraints-peers.txt | $(READY)
	$(PYTHON) -m venv --clear $(PEERS)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(PEERS)/bin/python --constraint constraints-peers.txt \
	  'olmoearth-pretrain[training]==0.1.2' rslearn==0.1.19 'setuptools<81' 'pandas>=2.2' \
	  tacoreader geopandas rioxarray scikit-learn xarray einops
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(PEERS)/bin/python --constraint constraints-peers.txt \
	  --no-deps geobench satlaspretrain-models timm
	@touch $@

bench-peers: $(READY) $(PEERS_READY)  ## how fast, beside the existing OlmoEarth eval code; WINDOWS=1000, AT=/dev/shm
	$(BIN)/python -m benchmarks.bench_peers --windows $${WINDOWS:-250} $${AT:+--at $$AT}

signal: $(READY)  ## a sweep finds planted signals, and none in shuffled labels; WINDOWS=400
	$(BIN)/python -m eval_ingest_tests.support.planted --windows $${WINDOWS:-400}

torture: $(READY)  ## kill, starve and damage ingests for a while: nothing is lost; MINUTES=10 SEED=1
	$(BIN)/python -m eval_ingest_tests.support.torture --minutes $${MINUTES:-10} --seed $${SEED:-1}

ui: $(READY)  ## Dagster's page and daemon at http://127.0.0.1:3000, watching the demo's folder; PORT=3001
	@$(BIN)/python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT)))' 2>/dev/null || \
	  { echo "port $(PORT) is taken; take another: make ui PORT=$$(($(PORT) + 1))" >&2; exit 1; }
	@test -f .env || sh scripts/demo.sh $(BIN)
	@mkdir -p .dagster && ln -sf ../dagster.yaml .dagster/dagster.yaml
	@. $(BIN)/activate && DAGSTER_HOME="$(CURDIR)/.dagster" exec dagster dev --host 127.0.0.1 --port $(PORT)

# Scores are the demo's if their version is one that the demo's eval root knows.
clean:  ## remove the demo's data, its scores, Dagster's history and the demo's .env; .venv stays
	@for pid in $$(pgrep -f '[d]agster (dev|asset|job)' 2>/dev/null); do \
	  at=$$(readlink /proc/$$pid/cwd || lsof -a -p $$pid -d cwd -Fn 2>/dev/null | sed -n 's/^n//p'); \
	  if [ "$$at" = "$$(pwd -P)" ]; then echo "a page or a run of this folder would lose what it shows:" \
	    "end process $$pid, then run make clean again" >&2; exit 1; fi; done
	@if grep -qs "Written by make demo" .env; then rm .env; \
	  for row in sweep_results/rows/*.json; do \
	    version=$$(sed -n 's/^ *"dataset_version": \("[^"]*"\).*/\1/p' "$$row" 2>/dev/null); \
	    [ ! -f "$$row" ] || grep -qsF "$${version:-?}" .demo/eval_datasets/*/metadata.json || others=$$row; done; \
	  if [ -z "$$others" ]; then rm -rf sweep_results; \
	  else echo "sweep_results stays: it holds scores of other evals, such as $$others"; fi; fi
	rm -rf .demo .dagster
