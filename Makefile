# `make demo` needs nothing but this file and Python 3.11 or newer; see README.md for what each target gives.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY = $(VENV)/bin/python
BEAM_VENV = $(VENV)-beam
BEAM_PY = $(BEAM_VENV)/bin/python
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
BEAM_PIP_INSTALL = $(BEAM_PY) -m pip install --quiet --disable-pip-version-check -c constraints-beam.txt

.PHONY: setup demo demo-short demo-photos test lint parity plan-test plan-pods beam-test clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

# pip first: the one that comes with Python 3.11 ends with a traceback when a connection breaks during a download, the
# pinned one goes on from there.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version.split()[0] + "; choose one with: make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) pip

$(VENV)/.installed: setup.py constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): a few minutes the first time"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.installed-photos: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,photos]'
	@touch $@

# Beam's pins disagree with constraints.txt: an environment and a lock file of its own.
$(BEAM_VENV)/.installed: setup.py constraints-beam.txt
	$(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_PIP_INSTALL) pip
	$(BEAM_PIP_INSTALL) -e '.[dev,beam]'
	@touch $@

$(VENV)/.installed-parity: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,parity]'
	@touch $@

$(VENV)/.installed-plan: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,plan]'
	@touch $@

demo: $(VENV)/.installed
	$(PY) -m launch.local --config launch/configs/demo.py

demo-short: $(VENV)/.installed
	$(PY) -m launch.local --config launch/configs/demo_short.py

demo-photos: $(VENV)/.installed-photos
	$(PY) -m launch.local --config launch/configs/photos.py

# The photographs come with libraries of their own, and their corpus is tested too.
# Two processes, a file of tests each at a time: most of the time is compiling, which one core does. In the order of
# their names: sorted by how many tests they have, the long ones of few tests would come last, on one core.
test: $(VENV)/.installed-photos
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

parity: $(VENV)/.installed-parity
	$(PY) -m pytest tests/parity

plan-test: $(VENV)/.installed-plan
	$(PY) -m pytest tests/tpu -m 'not pods'

# The paper's three runs on their pods: a quarter of an hour.
plan-pods: $(VENV)/.installed-plan
	$(PY) -m pytest tests/tpu -m pods

beam-test: $(BEAM_VENV)/.installed
	$(BEAM_PY) -m pytest tests/beam

clean:
	rm -rf $(VENV) $(BEAM_VENV) .pytest_cache .mypy_cache .ruff_cache build imagen_jax.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
