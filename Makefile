# Banyan's few targets. `make` alone lists them; a target that has nothing to do ends at once.

PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
KEEP    ?=
LOCK    := uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
           --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-kubernetes test test-faults faults test-kubernetes test-benchmarks simulate simulate-mutants unit e2e testbed testbed-compat lint installation format bench soak proto docs lock clean

help: ## List the targets
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9%-]+):.*## /  make \1\t/' | expand -t 24

setup: $(VENV)/.ready-dev ## Install everything a developer needs into .venv, with hashes

demo: $(VENV)/.ready-demo ## A living tree on this machine that serves a real model; KEEP=1 leaves it running
	@$(BIN)/banyan demo $(if $(KEEP),--keep)

demo-kubernetes: testbed ## The same with a real Kubernetes and a k3s-style cluster in the tree (as root); KEEP=1 leaves it running
	@$(BIN)/python -m e2e.kubernetes_demo $(if $(KEEP),--keep)

test: $(VENV)/.ready-dev ## Lint, types, arrows, proto, unit, property and end-to-end tests; CI adds the other test-…
	@$(BIN)/python -m tools.check all

unit: $(VENV)/.ready-dev ## Unit and property tests, with the coverage of the pure modules
	@$(BIN)/python -m tools.check unit

e2e: $(VENV)/.ready-dev ## End-to-end tests: real processes, real TLS, the real kubectl
	@$(BIN)/python -m tools.check e2e

test-faults: $(VENV)/.ready-dev ## End-to-end tests of trees that are cut, killed, moved and healed
	@$(BIN)/python -m tools.check faults

faults: $(VENV)/.ready-dev ## The same for as long as faults last in life: cuts and flapping of ten minutes (as root)
	@$(BIN)/python -m tools.check faults --long

test-kubernetes: testbed ## End-to-end tests on real Kubernetes clusters (as root)
	@$(BIN)/python -m tools.check kubernetes

test-benchmarks: $(VENV)/.ready-dev ## Every benchmark with small counts, to see that it works; CI runs it too
	@$(BIN)/python -m tools.check benchmarks

simulate: $(VENV)/.ready-dev ## Whole trees in virtual time, with faults; SEEDS=200 FROM=0 JOBS=2 ROUNDS=5 CLUSTERS=20, or WEEKS=1; TRACE=FILE with one seed; SHRINK=1 finds the fewest steps
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),20) --from $(or $(FROM),0) --jobs $(or $(JOBS),1) \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CLUSTERS),--clusters $(CLUSTERS)) $(if $(WEEKS),--weeks) $(if $(FAMILIES),--families $(FAMILIES)) \
	    $(if $(TRACE),--trace $(TRACE)) $(if $(SHRINK),--shrink)

simulate-mutants: $(VENV)/.ready-dev ## Put deliberate bugs into the simulated product, one after the other: each must be found
	@$(BIN)/python -m tests.simulation.mutants

testbed: $(VENV)/.ready-dev ## Build a real Kubernetes, etcd, kwok and kine once, into ~/.cache; install what they need (as root)
	@$(BIN)/python -m e2e.testbed build

testbed-compat: testbed ## Build an older Kubernetes and the fork of k3s too, and run the tests of Kubernetes members on them; TESTS=... for others
	@$(BIN)/python -m e2e.testbed compat $(TESTS)

installation: $(VENV)/.ready-dev ## Build the wheel, install it into an empty environment, and run it there
	@$(BIN)/python -m tools.check installation

lint: $(VENV)/.ready-dev ## Style, format, types, import contracts, proto lint and breaking changes; seconds
	@$(BIN)/python -m tools.check lint

format: $(VENV)/.ready-dev ## Let ruff format and mend what it can
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: $(VENV)/.ready-dev ## Every benchmark but the large trees (bench-large), in at most forty minutes; results in benchmarks/results and docs/performance.md
	@$(BIN)/python -m benchmarks all

bench-%: $(VENV)/.ready-dev ## One benchmark by its name
	@$(BIN)/python -m benchmarks $*

soak: $(VENV)/.ready-dev ## The inference worker under mixed load, bad requests too, for an hour: nothing may grow; SECONDS=60 for a minute
	@$(BIN)/python -m benchmarks.serve_soak --seconds $(or $(SECONDS),3600)

proto: $(VENV)/.ready-dev ## Generate the modules under proto/ again
	@$(BIN)/python -m tools.proto generate
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .  # it holds a copy of the generated code

docs: $(VENV)/.ready-dev ## Write what is made from the code: reference pages, rights in the chart, the manifest of join
	@$(BIN)/python -m tools.charts write
	@$(BIN)/python -m tools.reference write

lock: $(VENV)/.installer ## Resolve requirements/*.lock again, newest versions that pyproject.toml allows with UPGRADE=1
	@cd requirements && ../$(BIN)/uv pip compile --quiet installer.in --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
	    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) -o installer.lock
	@$(BIN)/$(LOCK) --extra terminal --extra serve --extra shim --extra kubernetes --extra bench --group dev $(if $(UPGRADE),--upgrade) -o requirements/dev.lock
	@$(BIN)/$(LOCK) --extra terminal --extra serve --group demo -c requirements/dev.lock -o requirements/demo.lock
	@$(BIN)/$(LOCK) -c requirements/dev.lock -o requirements/edge.lock

clean: ## Remove what was built; .venv too with ALL=1
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* $(if $(ALL),$(VENV))

# --- the environment -------------------------------------------------------------------------------------------------
# Each stamp says: installed from this lock. A second run compares two dates and ends.

$(VENV)/.installer: requirements/installer.lock tools/bootstrap.sh
	@PYTHON="$(PYTHON)" sh tools/bootstrap.sh "$(VENV)" requirements/installer.lock
	@touch $@

$(VENV)/.ready-%: requirements/%.lock pyproject.toml $(VENV)/.installer
	@echo "Installing requirements/$*.lock into $(VENV)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/$*.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
