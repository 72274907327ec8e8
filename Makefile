# Everything is done in .venv; PYTHON names the interpreter that makes it.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: run test test-clients demo example check faults contract bench requirements

run: .venv/ready
	@$(BIN)/flask --app wsgi init
	@echo 'Paste this into another terminal:'
	@echo "curl -H 'Authorization: Bearer $$($(BIN)/flask --app wsgi token me)' http://127.0.0.1:8000/api/experiments"
	@exec $(BIN)/gunicorn wsgi:app

test: .venv/ready-dev
	$(BIN)/pytest

# The clients, with what takes long: a million decisions, the time of one, the package.
# Needs Node 20 or newer.
JAVASCRIPT = clients/javascript
test-clients: .venv/ready-dev $(JAVASCRIPT)/node_modules
	cd $(JAVASCRIPT) && npm test
	$(BIN)/pytest tests/test_client_*.py --rounds 1

$(JAVASCRIPT)/node_modules: $(JAVASCRIPT)/package.json
	cd $(JAVASCRIPT) && npm install --no-package-lock --no-audit --no-fund
	@touch $@

demo: .venv/ready
	@$(BIN)/python demo/replay.py

# A shop whose visitors are in an experiment, with Abacus away in between.
example: .venv/ready-dev
	@$(BIN)/python clients/python/examples/visits.py

bench: .venv/ready-dev
	@$(BIN)/python bench/speed.py
	@$(BIN)/python bench/cost.py
	@$(BIN)/python bench/growth.py
	@$(BIN)/python bench/peeking.py
	@$(BIN)/python bench/horizon.py
	@$(BIN)/python bench/values.py
	@$(BIN)/python bench/metrics.py
	@$(BIN)/python bench/hash.py
	@$(BIN)/python bench/rules.py
	@$(BIN)/python bench/writers.py
	@$(BIN)/python bench/processes.py

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --cov --cov-branch --cov-report=term-missing:skip-covered

# 20 rounds of each fault; before a release `make faults ROUNDS=300`.
ROUNDS ?= 20
faults: .venv/ready-dev
	$(BIN)/pytest tests/faults --rounds $(ROUNDS)

# 300 examples of each operation and each property; more with EXAMPLES=1000.
EXAMPLES ?= 300
contract: .venv/ready-dev
	$(BIN)/pytest tests/test_contract.py tests/test_model.py --examples $(EXAMPLES)

.venv/ready: requirements.txt
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/ready-dev: requirements-dev.txt .venv/ready
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# Pins anew, for every Python from 3.10 on.
requirements: .venv/ready-dev
	for name in requirements requirements-dev; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
			--no-strip-extras --no-header --no-annotate --no-emit-index-url --upgrade $$name.in -o $$name.txt; done
