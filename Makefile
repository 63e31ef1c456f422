# `make` alone prints what there is. `make install` builds llama.cpp for the NVIDIA card that it finds;
# CPU=1 builds for the CPU instead, CMAKE_ARGS="…" as it says, and CPU=0 looks at the machine again.
MODEL ?= models/demo.gguf
HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
ARGS ?=
VENV := .venv/bin
CODE := server scripts tests

.DEFAULT_GOAL := help
.PHONY: help install install-dev serve test check format lock docs bench clean

help: ## Print this list
	@echo "Targets:"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'
	@echo
	@echo "make serve MODEL=path/to/model.gguf HOST=0.0.0.0 PORT=8080 ARGS='--slots 8'"

install: ## Make .venv: pinned dependencies, llama.cpp compiled for what is here (CPU=1: for the CPU)
	@$(PYTHON) scripts/install.py

install-dev: ## The same, with what `make check` and `make test` need
	@$(PYTHON) scripts/install.py --dev

serve: install ## Serve MODEL on HOST:PORT
	@exec $(VENV)/onegpu serve "$(MODEL)" --host "$(HOST)" --port "$(PORT)" $(ARGS)

test: install-dev check ## Everything: check, then the whole test suite
	@$(VENV)/python -m pytest $(ARGS)

check: install-dev ## Format, lint, types and layers, without changing a file
	@scripts/check

format: install-dev ## Format and apply the linter's safe fixes
	@$(VENV)/ruff check --fix --exit-zero --quiet $(CODE)
	@$(VENV)/ruff format $(CODE)

lock: ## Renew requirements*.lock with current versions
	@PYTHON=$(PYTHON) scripts/lock.sh

docs: install-dev ## Write docs/settings.md from the settings' descriptions
	@$(VENV)/python scripts/settings_table.py

bench: install-dev ## Compare served tokens/s with the bare llama.cpp loop
	@$(VENV)/python scripts/bench_engine.py $(ARGS)

clean: ## Remove .venv, caches and build outputs
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find server scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +
