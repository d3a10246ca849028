# Two commands set everything up by themselves: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Every version is pinned here for development and CI; users are not bound by it.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test check quick coverage docs browser lint types unit slow oldest gpu matrix build clean

help:
	@echo "make demo   install into $(VENV) and run the main job on the bundled miniature"
	@echo "make test   install into $(VENV), then lint, format check, type check and the whole test suite"
	@echo "make check  lint, types and quick tests, for the inner loop"
	@echo "make coverage  the whole suite, with the share of lines that it runs"
	@echo "make docs   the documentation site, in build/site"
	@echo "make slow   the tests that take minutes"
	@echo "make oldest tests of adapters and plans with the oldest diffusers that is allowed"
	@echo "make gpu    everything that needs a GPU, in under eight minutes; writes docs/benchmarks/gpu.md"
	@echo "make matrix install and test with every supported Python that is here, and say which is not"

$(VENV)/.requirements: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt setuptools wheel torch
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[dev,report,video]'
	@touch $@

# Strict editable mode is what type checkers and pkgutil can follow; it links files, so new ones need a reinstall.
install: $(VENV)/.requirements
	$(PIP) install --quiet --no-deps --no-build-isolation --config-settings editable_mode=strict -e . -e examples/miniatures

demo: install
	rm -rf out/demo
	$(BIN)/hasten demo --out out/demo

test: install browser lint types docs unit

# The inner loop, on two cores: types beside lint and quick tests. Nothing generates a picture.
QUICK := tests/schedules tests/test_docstrings.py $(addprefix tests/sdk/test_,\
	config.py conflicts.py document.py journal.py lazy.py records.py schema.py swap.py)
check:
	@$(MAKE) --no-print-directory -j2 types quick

quick: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(QUICK)

# Slower than `make unit` by about a third; docs and examples that run in processes of their own are not counted.
coverage:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov=hasten --cov-report=term:skip-covered

docs:
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build

# The HTML report is tested in a real browser; a page that was not looked at is not tested.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium || \
	{ echo "make test needs a Chromium or Chrome on the PATH; install one and run it again" >&2; exit 1; }

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types:
	$(BIN)/mypy -p hasten -p hasten_miniatures
	$(BIN)/mypy examples/every_other
	$(BIN)/mypy examples/own_adapter

unit:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

slow: install
	$(BIN)/python -m pytest -m slow

# A folder of its own in front of the environment, which keeps the pinned version.
OLDEST = $(shell sed -n 's/^ *"diffusers>=\([0-9.]*\)",/\1/p' pyproject.toml)
oldest: install
	$(PIP) install --quiet --no-deps --upgrade --target build/oldest 'diffusers==$(OLDEST)'
	PYTHONPATH=build/oldest $(BIN)/python -c "import diffusers; print('diffusers', diffusers.__version__)"
	PYTHONPATH=build/oldest OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/pipelines/adapters tests/test_plan_and_call.py \
		tests/test_pairs.py tests/sdk/test_acceleration.py

gpu: install
	$(PIP) install --quiet -e '.[gpu]'
	$(BIN)/python docs/benchmarks/gpu.py

matrix:
	.ci/matrix

build: install
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf build dist *.egg-info examples/miniatures/build examples/miniatures/*.egg-info out .pytest_cache .mypy_cache .ruff_cache
