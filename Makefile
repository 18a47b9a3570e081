# Every target does all its own set-up; run again, it does only what is missing.
PYTHON ?= python3
PORT ?= 7860
VENV := .venv
LATEST := .venv-latest
BIN := $(VENV)/bin
DEMO_EXTRAS := .[train]
TEST_EXTRAS := .[train,test]
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-for-tests
PIP := python -m pip --disable-pip-version-check

.PHONY: install demo test test-latest fuzz lint check-docs lock clean

# $(call step,what it says,command): one line and the seconds it took; the command's own output only where it fails
define step
@printf '%s ... ' '$(1)'; start=$$(date +%s); log=$$(mktemp); \
if { $(2); } >"$$log" 2>&1; then echo "$$(( $$(date +%s) - start )) s"; rm -f "$$log"; \
else echo failed; tail -n 40 "$$log"; rm -f "$$log"; exit 1; fi
endef

# $(call make_venv,folder): an empty environment of a Python that serves
define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Tresse needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
$(call step,Making $(1),$(PYTHON) -m venv $(1))
endef

install: $(STAMP)

$(BIN)/python:
	$(call make_venv,$(VENV))

$(STAMP): pyproject.toml constraints.txt $(BIN)/python
	$(call step,Installing Tresse and what it needs (about 5 GB),$(BIN)/$(PIP) install -c constraints.txt -e "$(DEMO_EXTRAS)")
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(call step,Installing what the tests need,$(BIN)/$(PIP) install -c constraints.txt -e "$(TEST_EXTRAS)")
	@touch $@

demo: install
	$(BIN)/tresse demo --port $(PORT)

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What the pages say is so: their commands, links and code (part of `make test`)
check-docs: $(TEST_STAMP)
	$(BIN)/python -m pytest tests/test_docs.py

test: lint
	$(call step,Finding a browser,$(BIN)/python -m tests.browser)
	$(BIN)/python -m pytest

# More hostile recordings, bundles and requests than `make test` tries, beginning with the same: make fuzz RECORDINGS=20000
RECORDINGS ?= 5000
BUNDLES ?= 2000
REQUESTS ?= 1000
fuzz: $(TEST_STAMP)
	TRESSE_FUZZ_RECORDINGS=$(RECORDINGS) TRESSE_FUZZ_BUNDLES=$(BUNDLES) TRESSE_FUZZ_REQUESTS=$(REQUESTS) \
		$(BIN)/python -m pytest --timeout=0 -k "mutated_recordings or broken_bundles_are or malformed_requests" \
		tests/slm/test_decoding.py tests/slm/test_broken_bundles.py tests/demo/test_requests.py

# The newest versions that pyproject.toml allows, in an environment of their own: what differs from constraints.txt, and
# what it breaks.
test-latest:
	@test -x $(LATEST)/bin/python || $(MAKE) --no-print-directory $(LATEST)/bin/python
	$(call step,Installing the newest versions,$(LATEST)/bin/$(PIP) install --upgrade --upgrade-strategy eager -e "$(TEST_EXTRAS)")
	$(call step,Finding a browser,$(LATEST)/bin/python -m tests.browser)
	$(LATEST)/bin/python -m tests.versions
	$(LATEST)/bin/python -m pytest -rf || { $(LATEST)/bin/python -m tests.versions; exit 1; }

$(LATEST)/bin/python:
	$(call make_venv,$(LATEST))

# constraints.txt: the newest versions of today, for every platform and Python that the project names
lock: $(TEST_STAMP)
	$(call step,Installing uv,$(BIN)/$(PIP) install uv)
	$(call step,Resolving,$(BIN)/uv pip compile pyproject.toml --extra train --extra test --extra voices --extra ray --universal --upgrade \
		--python-version 3.11 --no-header --no-annotate --no-emit-index-url --output-file constraints.txt)

clean:
	rm -rf $(VENV) $(LATEST) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
