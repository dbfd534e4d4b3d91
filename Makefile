# make        sets everything up and runs a first search on this machine
# make test   lint, types and the tests; `make test-long` runs those of a minute or more
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
TRIALS ?= 20
BIN := .venv/bin

.PHONY: search install install-dev validate lint types test tests test-long docs clean

search: install
	$(BIN)/python search.py --trials $(TRIALS)

install: .venv/.installed

install-dev: .venv/.installed-dev

define venv
@test -n "$(PYTHON)" || { echo "Caddie needs Python 3.11, 3.12 or 3.13 on PATH, but found none. Install one, or run: make PYTHON=/path/to/python"; exit 2; }
$(PYTHON) -m venv .venv
$(BIN)/python -m pip install -qq --disable-pip-version-check -U pip
$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
endef

.venv/.installed: pyproject.toml constraints.txt
	$(venv) -e .
	@touch $@

# no byte code of 14,000 files: the tests keep that of those which they import
.venv/.installed-dev: pyproject.toml constraints.txt
	$(venv) --no-compile -e '.[dev]'
	@touch $@ .venv/.installed

docs: install
	$(BIN)/python -m conformance.reference

validate: install
	$(BIN)/python validate.py

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/pyright

test: lint
	$(MAKE) -j 2 types tests

tests: install-dev
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

test-long: install-dev
	$(BIN)/python -m pytest -q -m long

clean:
	rm -rf .venv runs .caddie data
