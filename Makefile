# Each target installs what it needs; you need Python >= 3.10, pip and make.
# Options for pytest go into PYTEST_ADDOPTS: make test PYTEST_ADDOPTS="--durations=25".
# STRICT=--fail-on-skip lets a skipped test fail the run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/installed

# Tests start hundreds of processes, which would each compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check test-marked test-marked-ray test-marked-rest test-pythons peers test-peers bench docs clean

# Run the whole chain offline, from a list of URLs to an evaluated prior.
demo: $(INSTALLED)
	$(BIN)/priorkit demo

# Run the tests that need pip packages alone, with one process for each core.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(STRICT) --numprocesses auto --dist loadfile

# Run the slow tests, and those that need root or the programs that `.ci/run` installs. Tests of Ray clusters run one
# after the other; `make --jobs=2 test-marked` runs the others at the same time. Those run in the order of their files,
# because xdist would otherwise start the demo, the longest test, last.
MARKED := -m "slow or root or nginx or browser"
RAY_TESTS := $(wildcard tests/integration/test_*ray*.py)
# Only files that contain such a mark are collected, because collecting all tests takes each process many seconds.
MARKED_TESTS = $(sort $(shell grep -rlE --include='test_*.py' 'mark\.(slow|root|nginx|browser)' tests))
test-marked: test-marked-ray test-marked-rest

test-marked-ray: $(INSTALLED)
	$(BIN)/python -m pytest $(STRICT) $(MARKED) $(RAY_TESTS)

test-marked-rest: $(INSTALLED)
	$(BIN)/python -m pytest $(STRICT) --numprocesses 2 --dist loadfile --no-loadscope-reorder $(MARKED) $(filter-out $(RAY_TESTS),$(MARKED_TESTS))

# Test the wheel, the light install and the engine clip-retrieval in a fresh environment of each installed Python from
# 3.10 to 3.13, or of PYTHONS="3.10 3.13".
test-pythons: $(INSTALLED)
	$(BIN)/python tests/install/smoke.py --no-page $(if $(PYTHONS),--pythons $(PYTHONS))

# Install the tools that priorkit is compared with; they need an environment of their own.
peers: $(PEERS_INSTALLED)

# Test the golden files and converted checkpoints against dalle2-pytorch itself.
test-peers: $(PEERS_INSTALLED)
	$(PEERS)/bin/python -m pytest tests/peers --confcutdir=tests/peers -m peers

# Write timings and scores to docs/benchmarks; takes about an hour and a half on 2 idle cores.
bench: $(INSTALLED) $(PEERS_INSTALLED)
	$(BIN)/priorkit demo
	$(BIN)/python tests/bench/bench_samplers.py --demo data/demo
	$(BIN)/python tests/bench/bench_evaluation.py
	$(BIN)/python tests/bench/bench_reader.py
	$(BIN)/python tests/bench/bench_download.py
	$(BIN)/python tests/bench/bench_download_slow.py
	$(BIN)/python tests/bench/bench_unclip.py
	$(BIN)/python tests/install/smoke.py
	$(PEERS)/bin/python tests/bench/bench_sampling.py
	$(PEERS)/bin/python tests/bench/bench_embedding.py
	$(PEERS)/bin/python tests/bench/bench_training.py
	$(PEERS)/bin/python tests/bench/bench_time_to_quality.py --demo data/demo

# Run ruff and mypy.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Build the documentation as a web site in build/site.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

# --no-compile: a module is compiled when it is first imported; most modules of the packages never are.
# clip-retrieval is an engine of `embed`. Its pins exclude current versions of numpy, pyarrow and open_clip.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[demo,dev]"
	$(BIN)/python -m pip install --quiet --no-compile --no-deps clip-retrieval all-clip clip-anytorch
	touch $(INSTALLED)

$(PEERS_INSTALLED): tests/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --no-compile --requirement tests/peers/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(PEERS_INSTALLED)

clean:
	rm -rf $(VENV) $(PEERS) data build *.egg-info .pytest_cache .mypy_cache .ruff_cache
