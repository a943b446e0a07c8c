# Everything runs in .venv, made from pyproject.toml with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
NAME ?= demo
AGAINST = $(if $(NANOGPT),--against $(NANOGPT))

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu chaos resume-grid answers own-text live bench bench-training bench-attention bench-data bench-inspection bench-loss bench-generation bench-quick bench-gpu interop notebook lint types format clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: .venv/installed ## train the default model for three minutes, write samples, show its attention
	$(BIN)/python train.py --config configs/demo.yaml --name $(NAME)

test: .venv/installed-dev lint types ## lint, types and the test suite
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist worksteal

test-slow: .venv/installed-dev ## the longer proofs that `make test` leaves out
	$(BIN)/python -m pytest -m slow

test-gpu: .venv/installed-dev ## the device contract on the GPU of this machine; says so where there is none
	$(BIN)/python -m pytest tests/device -m gpu -rs -s

PROOFS = PYTHONPATH=tests:tests/training OMP_NUM_THREADS=1 $(BIN)/python

chaos: .venv/installed-dev ## 100 processes of many kinds of runs killed at random moments and resumed: all exact? (10 minutes)
	$(PROOFS) benchmarks/chaos.py --write

resume-grid: .venv/installed-dev ## 200 ways to save, die and go on: all exact? (10 minutes)
	$(PROOFS) benchmarks/resume_grid.py --write

answers: .venv/installed-dev ## a model of questions and answers about short stories: 95 % of the held-out ones right? (minutes)
	$(BIN)/python benchmarks/answers.py --write

own-text: .venv/installed-dev ## --budget on texts of one's own, against the demo's settings and nanoGPT: TEXTS="a.txt b.txt" (hours; kept run by run)
	$(BIN)/python benchmarks/own_text.py $(TEXTS) $(AGAINST)

live: .venv/installed-dev ## the live page of runs/NAME in Chromium: size, loss, first view, tokens a second (3 minutes on an idle machine)
	$(BIN)/python benchmarks/live.py --run runs/$(NAME) --write

BENCH = $(BIN)/python benchmarks
COMPARED = $(AGAINST) $(if $(TEXT),--text $(TEXT))

bench: $(addprefix bench-,training attention data inspection loss generation) ## all benchmarks into benchmarks/results/ (90 minutes, idle machine); NANOGPT=folder TEXT=file to compare
	$(BENCH)/summary.py

bench-training: .venv/installed-dev
	$(BENCH)/training.py $(COMPARED) $(if $(BEFORE),--before $(BEFORE)) --write

bench-generation: .venv/installed-dev
	$(BENCH)/generation.py $(AGAINST) $(if $(wildcard runs/$(NAME)),--run runs/$(NAME)) --write

bench-attention bench-data bench-inspection bench-loss: bench-%: .venv/installed-dev
	$(BENCH)/$*.py --write

bench-quick: .venv/installed-dev ## the cases that matter of all benchmarks, in five minutes: is a bound lost that was kept?
	$(BENCH)/quick.py $(COMPARED)

bench-gpu: .venv/installed-dev ## what only an NVIDIA GPU shows, in ten minutes; NANOGPT=folder to compare
	$(BENCH)/gpu.py $(AGAINST) --write

interop: .venv/installed-dev ## GPT-2 small's sizes in and out of other programs' formats: time and memory (5 minutes)
	$(BIN)/python benchmarks/other_programs.py --write

notebook: .venv/installed-dev ## execute docs/your-text.ipynb and keep its outputs in it (five minutes on an idle machine)
	$(BIN)/python tests/notebooks.py docs/your-text.ipynb

lint: .venv/installed-dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev ## mypy on src and the scripts
	$(BIN)/mypy

format: .venv/installed-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $$($(PYTHON) --version) is too old: minigpt needs Python 3.11 or newer, as in 'make demo PYTHON=python3.12'"; exit 2; }
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing what constraints.txt pins (a few minutes the first time)"
	@# torch first and by its pin: a bare requirement would take the newest build, with gigabytes of CUDA on Linux.
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing the tools of the tests"
	@$(PIP) -e '.[dev]'
	@touch $@
