# Everything sets itself up: Python >= 3.10, pip and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test check test-marked docs clean

# The whole chain, offline, from a list of URLs to an evaluated prior.
demo: $(INSTALLED)
	$(BIN)/priorkit demo

# The tests that need pip packages only.
test: $(INSTALLED)
	$(BIN)/python -m pytest

# The tests that need more: slow ones, and those that need what `.ci/run` installs.
test-marked: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or root or nginx or browser or peers"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a web site, in build/site.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) data build *.egg-info .pytest_cache .mypy_cache .ruff_cache
