# Everything a person does with this repository. `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PROTOS = $(wildcard proto/fedreid/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow simulation crashes soak test-kubernetes docs pages lint proto charts clean

help:  ## Say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## Run a whole federation on this machine; report in runs/demo/
	$(BIN)/fedreid-bench demo --out runs/demo $(DEMO_FLAGS)

test: lint  ## Check and test everything
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed  ## Bulk and load tests, one after the other, with their figures
	$(BIN)/python -m pytest -m slow -n 0 -s --timeout 1800

simulation: $(VENV)/.installed  ## Ten thousand schedules of crashes and other troubles, in virtual time
	$(BIN)/python -m pytest tests/simulation -k promises --schedules 10000

crashes: $(VENV)/.installed  ## The whole crash matrix: killed at every point and every write
	$(BIN)/python -m pytest -m slow --timeout 1800 \
		tests/federation/test_crash_matrix.py tests/federation/test_crashes_of_trust.py

soak: $(VENV)/.installed  ## A thousand rounds: memory, files and disk must stay flat
	$(BIN)/python -m pytest -m soak -n 0 -s --timeout 7200

test-kubernetes: $(VENV)/.installed  ## Both charts on a real cluster: KUBECONFIG's, or one made here
	test -n "$(KUBECONFIG)" || .ci/kubernetes
	$(BIN)/python -m pytest -m kubernetes -n 0 -s --timeout 7200 tests/kubernetes

docs: $(VENV)/.installed  ## Build the site of the documents in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pages: $(VENV)/.installed  ## Type every command of the guides, from top to bottom
	$(BIN)/python -m pytest -m slow -n 0 --timeout 1800 tests/docs

lint: $(VENV)/.installed  ## Style, types, borders between packages, the contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto
	$(BIN)/python -m tests.contract

proto: $(VENV)/.installed  ## Generate the stubs in fedreid/v1 from proto/
	$(BIN)/python -m tests.stubs .

charts: $(VENV)/.installed  ## Copy rules and boards into the chart; write READMEs, schemas, golden manifests
	mkdir -p helm/coordinator/files/rules helm/coordinator/files/dashboards
	cp deploy/prometheus/rules/*.yml helm/coordinator/files/rules/
	cp deploy/grafana/dashboards/*.json helm/coordinator/files/dashboards/
	$(BIN)/python -m tests.deploy.chart_docs .
	$(BIN)/python -m tests.deploy.rendering .

clean:  ## Remove what was built
	rm -rf $(VENV) runs site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
