# Everything sets itself up: Python >= 3.10, pip and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/installed

.PHONY: demo test check test-marked test-pythons peers test-peers bench docs clean

# The whole chain, offline, from a list of URLs to an evaluated prior.
demo: $(INSTALLED)
	$(BIN)/priorkit demo

# The tests that need pip packages only, on as many processes as there are cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

# The tests that need more: slow ones, and those that need what `.ci/run` installs.
test-marked: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or root or nginx or browser" --numprocesses 2 --dist loadgroup

# The wheel in a fresh environment of every Python from 3.10 to 3.13 that is here, and the light install.
test-pythons: $(INSTALLED)
	$(BIN)/python tests/install/smoke.py --no-page

# The environment of the tools that priorkit is compared with, which do not install beside it.
peers: $(PEERS_INSTALLED)

# What dalle2-pytorch itself says of the golden files, and of checkpoints that go from one to the other.
test-peers: $(PEERS_INSTALLED)
	$(PEERS)/bin/python -m pytest tests/peers --confcutdir=tests/peers -m peers

# Timings and scores, into docs/benchmarks: about an hour and a half on 2 cores that nothing else uses.
bench: $(INSTALLED) $(PEERS_INSTALLED)
	$(BIN)/priorkit demo
	$(BIN)/python tests/bench/bench_samplers.py --demo data/demo
	$(BIN)/python tests/bench/bench_evaluation.py
	$(BIN)/python tests/bench/bench_reader.py
	$(BIN)/python tests/bench/bench_download.py
	$(BIN)/python tests/bench/bench_download_slow.py
	$(BIN)/python tests/install/smoke.py
	$(PEERS)/bin/python tests/bench/bench_sampling.py
	$(PEERS)/bin/python tests/bench/bench_embedding.py
	$(PEERS)/bin/python tests/bench/bench_training.py
	$(PEERS)/bin/python tests/bench/bench_time_to_quality.py --demo data/demo

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a web site, in build/site.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"
	touch $(INSTALLED)

$(PEERS_INSTALLED): tests/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement tests/peers/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(PEERS_INSTALLED)

clean:
	rm -rf $(VENV) $(PEERS) data build *.egg-info .pytest_cache .mypy_cache .ruff_cache
