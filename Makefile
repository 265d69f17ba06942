# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first Python that is new enough; name another with: make demo PYTHON=/path/to/python3.12
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: demo test test-interoperability test-faults lint format bench install cuda clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo     answers of the trained model in weights/; then, if you like, train a small one (four minutes on two cores)"
	@echo "make test     run all tests"
	@echo "make test-faults   kill trainings, fill disks, damage files, and see what is lost (under ten minutes)"
	@echo "make lint     check style and types          make format   put the style right"
	@echo "make bench    measure training and writing   make install  only install, into .venv"
	@echo "make cuda     install MLX's CUDA build (Linux with an NVIDIA GPU)"

demo: install
	@$(BIN)/mlx-codegen demo

test: $(VENV)/.dev-installed
	@$(BIN)/python -m pytest

# Needs torch (about 500 MB); mlx-lm's tools and transformers open what we export
test-interoperability: $(VENV)/.dev-installed
	@$(PIP) install --quiet -e ".[interoperability]"
	@$(BIN)/python -m pytest -m "" tests/test_interoperability.py

# Kills, full disks, damaged files: all that a training must survive, and a table of it (under ten minutes on two cores)
test-faults: $(VENV)/.dev-installed
	@$(BIN)/python -m pytest -m "" tests/faults

lint: $(VENV)/.dev-installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy scripts

format: $(VENV)/.dev-installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install
	@$(BIN)/mlx-codegen bench all

install: $(VENV)/.installed

# MLX's CPU and CUDA builds put their library in the same place: the one installed last counts.
cuda: install
	@$(PIP) install --quiet -e ".[cuda]"
	@$(PIP) uninstall --quiet --yes mlx-cpu
	@$(PIP) install --quiet --force-reinstall --no-deps mlx-cuda-13

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
		echo "error: mlx_codegen needs Python 3.10 or newer, found $$("$(or $(PYTHON),python3)" --version 2>&1 | head -n 1);" \
			"install one, then: make demo PYTHON=python3.12" >&2; exit 2; fi
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (a minute or two, about 700 MB)"
	@$(PIP) install --quiet -e .
	@touch $@

$(VENV)/.dev-installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) with what the tests need (a minute or two, about 800 MB)"
	@$(PIP) install --quiet -e ".[dev]"
	@touch $@ $(VENV)/.installed
