# Everything is done in .venv; PYTHON names the interpreter that makes it.
PYTHON ?= python3
BIN = .venv/bin
# The port on which `make run` serves; PORT=8001 names another one.
PORT ?= 8000

.PHONY: run test test-clients demo example example-node check faults contract bench requirements

run: .venv/ready
	@$(BIN)/python -c 'import socket; socket.create_server(("127.0.0.1", int("$(PORT)")))' 2>/dev/null || { \
		echo 'Port $(PORT) cannot be used, perhaps because Abacus runs there already: end what has it, or name another one, as in "make run PORT=8001".' >&2; exit 1; }
	@$(BIN)/flask --app wsgi init
	@echo 'Paste this into another terminal:'
	@echo "curl -H 'Authorization: Bearer $$($(BIN)/flask --app wsgi token me)' http://127.0.0.1:$(PORT)/api/experiments"
	@echo "Or open this page: $$($(BIN)/flask --app wsgi token me --link http://127.0.0.1:$(PORT))"
	@exec $(BIN)/gunicorn wsgi:app --bind 127.0.0.1:$(PORT)

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

# The same with a page of Node, and with a browser if there is one.
example-node: .venv/ready-dev $(JAVASCRIPT)/node_modules
	@$(BIN)/python clients/python/examples/visits.py $(JAVASCRIPT)/examples/page.js

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

# An older Python must not make .venv: a newer one could not repair it.
.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo 'Abacus needs Python 3.10 or newer, and "$(PYTHON)" is none: install one and name it, as in "make run PYTHON=python3.12".' >&2; exit 1; }
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
