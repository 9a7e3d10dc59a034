# The two commands of the README. They make a virtual environment of their own; on Windows see README.md.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DATA ?= ../shared/data/alberts
OUT ?= study
WORKERS ?= 2
# Tests run side by side, each process with one thread of its own; what a file's tests share they find in one process.
PROCESSES ?= 2
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest Testing -n $(PROCESSES) --dist loadfile

.PHONY: demo study test coverage test-fast lint train rehearsal tables clean
.DELETE_ON_ERROR:

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip
	$(RUN) -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/test: $(VENV)/base
	$(RUN) -m pip install -q -c constraints.txt -e ".[test,slicer]"
	touch $@

demo: $(VENV)/base
	$(VENV)/bin/neonatalseg demo --out demo

# A BIDS data set as a study, on as many workers: DATA=... OUT=... WORKERS=...
study: $(VENV)/base
	$(RUN) -m pip install -q -c constraints.txt -e ".[cluster]"
	$(VENV)/bin/neonatalseg bids $(DATA) $(OUT) participant --workers $(WORKERS)

test: $(VENV)/test
	$(PYTEST)

# As make test, and which lines no test reaches: a fifth slower.
coverage: $(VENV)/test
	$(PYTEST) --cov --cov-report=term:skip-covered

# For between two edits: without the tests that train, segment, draw the panel or start a compute process.
test-fast: $(VENV)/test
	$(PYTEST) -m "not slow" --durations=3

lint: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m codespell_lib
	$(VENV)/bin/lint-imports

train: $(VENV)/test
	$(VENV)/bin/neonatalseg train --data $(DATA) --config Resources/Training/neonatal-t1t2.json --out runs/neonatal-t1t2

# The paper's experiments in minutes, on drawn newborns: docs/experiments.md.
rehearsal: $(VENV)/base
	$(RUN) -m pip install -q -c constraints.txt -e ".[experiments]"
	$(VENV)/bin/neonatalseg experiment rehearsal --out runs/rehearsal

# The pages of docs/results of the four experiments and of the heads' weights, from the ALBERTs. Goes on where it was.
tables: $(VENV)/test
	$(VENV)/bin/neonatalseg experiment all --data $(DATA) --config Resources/Experiments/alberts.json --runs 3 --out runs/tables
	for name in baseline age budget transfer heads; do cp runs/tables/$$name*.* docs/results/; done

clean:
	rm -rf $(VENV) demo
