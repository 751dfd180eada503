# make run: the app on the demo study. make test: everything tests need, then all tests.
# make bench: the metrics beside their peers, on the same arrays.
# make fuzz: broken and malicious files, FUZZ times as many as make test tries.
# make drill: every fault at MOMENTS random moments; the outcomes go to REPORT.
# make load: 50 people at once on the workspace (a finished study); make soak: for an hour, or MINUTES=n.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
FUZZ ?= 50
MOMENTS ?= 5
REPORT ?= drill.md
MINUTES ?= 60
BENCHMARKS ?= metrics cohorts memory image_mmd extraction

.PHONY: run test lint bench fuzz drill load soak clean
.DEFAULT_GOAL := run

run: $(VENV)/.run
	$(BIN)/streamlit run app.py --server.port $(PORT)

test: $(VENV)/.test
	sh tests/chromium.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20

lint: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: $(VENV)/.bench
	for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

fuzz: $(VENV)/.test
	FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/test_hostile_files.py tests/test_hostile_dicom.py

drill: $(VENV)/.test
	$(BIN)/python -m tests.faults.drill --moments $(MOMENTS) --report $(REPORT)

load: $(VENV)/.test
	$(BIN)/python -m benchmarks.load

soak: $(VENV)/.test
	$(BIN)/python -m benchmarks.load --minutes $(MINUTES)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

$(VENV)/.test: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

# The peers live apart: their dependencies would replace ours (requirements-bench.txt says why).
$(VENV)/.bench: requirements-bench.txt $(VENV)/.test
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target $(VENV)/peers -r requirements-bench.txt
	touch $@
