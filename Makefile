# `make demo` and `make view` show what it does, `make test` checks that it does it.
# Each sets up .venv by itself, and only again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo view test test-slow lint docs clean python screen

help: ## show this list
	@echo "napari-shmoareg: 3D medical image registration by experts you can see"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP) ## register the built-in sample pair, with figures, into demo-result/
	@rm -rf demo-result
	@$(BIN)/shmoareg demo --out demo-result

view: $(STAMP) ## register it in napari, in a window on your screen, and show its experts
	@.ci/screen $(VENV)
	@if [ "`uname`" = Linux ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ]; then \
		echo "There is no screen here (DISPLAY is not set). Log in at a desktop or with 'ssh -X', or see 'make demo'." >&2; exit 1; fi
	@$(BIN)/napari --plugin shmoareg shmoareg://demo

# Compiled files are kept, also where the environment says otherwise: the tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint screen ## lint, import contracts, types, then the tests that take minutes all together
	$(PYTEST) -m "not slow"

test-slow: screen ## the other tests: whole commands, windows, killed processes, every page of docs/
	$(PYTEST) -m slow

lint: $(STAMP) ## lint, formatting, import contracts and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation into site/; a broken link is an error
	@$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html, or run: $(BIN)/mkdocs serve"

clean: ## remove .venv, demo-result/ and everything else made here
	rm -rf $(VENV) demo-result site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find napari_shmoareg tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The tests open windows, on a screen of their own.
screen: $(STAMP)
	@.ci/screen $(VENV) Xvfb

# Python 3.11 or newer that can make virtual environments (Debian keeps that part in a package of its own).
python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing. On Debian or Ubuntu: sudo apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is `$(PYTHON) -V 2>&1`. Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "`id -u`" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing python3-venv ..."; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; \
		else \
			echo "$(PYTHON) cannot make virtual environments yet. Run this line, then make again:" >&2; \
			echo "    sudo apt-get install python3-venv" >&2; exit 1; \
		fi; }

$(STAMP): pyproject.toml constraints.txt | python
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "Making $(VENV) ..."; $(PYTHON) -m venv --clear $(VENV); fi
	@echo "Installing PyTorch into $(VENV) (large: minutes the first time) ..."
	@$(PIP) torch==2.13.0
	@echo "Installing shmoareg and what it needs into $(VENV) ..."
	@$(PIP) -e '.[all,test]'
	@touch $@
	@echo "Ready."
