# The two commands of the README. They make a virtual environment of their own; on Windows see README.md.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DATA ?= ../shared/data/alberts

.PHONY: demo test lint train clean
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

test: $(VENV)/test
	$(RUN) -m pytest Testing

lint: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

train: $(VENV)/test
	$(VENV)/bin/neonatalseg train --data $(DATA) --config Resources/Training/neonatal-t1t2.json --out runs/neonatal-t1t2

clean:
	rm -rf $(VENV) demo
