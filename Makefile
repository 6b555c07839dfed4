# `make test` and `make train` work on a bare machine that has Python 3.10 or newer and make.
PYTHON ?= python3
TRAIN ?= maddpg mpe/simple_spread_v3 --reciprocity.kappa 0.5 --steps 160000 --copies 16 --update-every 4 \
	--eval-every 16000 --eval-episodes 100
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGE := setup.cfg pyproject.toml constraints.txt

.PHONY: help install test train bench docs clean

help:
	@echo "make test    install into $(VENV), optional environments included; lint, check types, run all tests"
	@echo "make train   install, then train: marl train $(TRAIN)"
	@echo "make bench   install the rivals too, then compare speeds"
	@echo "make docs    build the documentation into site/"
	@echo "make clean   remove $(VENV), .venv-rivals, site/ and caches (never runs/)"

install: $(VENV)/installed

test: $(VENV)/installed-test
	$(BIN)/python benchmarks/venvs.py benchmarl
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	export OMP_NUM_THREADS=1; $(BIN)/python -m pytest -m jax & jax=$$!; $(BIN)/python -m pytest -m ray && wait $$jax
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not jax and not ray"

train: install
	$(BIN)/marl train $(TRAIN)

bench: $(VENV)/installed-bench $(VENV)/installed-swap
	$(BIN)/python benchmarks/venvs.py
	$(BIN)/python benchmarks/speed.py

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-rivals build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is newer than the files that say what to install, so an unchanged checkout installs nothing.
$(VENV)/installed: $(PACKAGE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "marl needs Python 3.10 or newer; say make PYTHON=python3.x")'
	@echo "installing into $(VENV) (some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[test,smax,mamujoco,atari,minatar,ray,export,swap]'
	touch $@

$(VENV)/installed-%: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[$*]'
	touch $@
