# make demo    a small metro and a second city, all five stages, the result table
# make test    the whole test suite but what takes minutes, a GPU or the network
# make help    the rest
#
# Everything runs in .venv, made at the first call. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
BESIDE = -n $(JOBS) --dist loadfile  # each process takes whole files of tests, so that what these share is made once
DATA ?= ../shared/data
SECONDS ?= 600

.PHONY: help demo cities figs test test-all test-gpu fuzz soak real evaluate evaluate-cities bench acquire-check reliability check clean

help:
	@echo "make demo               a generated metro and a second city through all five stages (about 4 minutes on 2 cores, 2 of them the installation)"
	@echo "make cities             twenty generated cities: which is which, why, alike, scored, mapped"
	@echo "make figs               runs figs.ipynb, which draws the paper's figures of the demo"
	@echo "make test               install, then the test suite"
	@echo "make test-all           also the tests that take minutes"
	@echo "make test-gpu           the checks that need an NVIDIA GPU"
	@echo "make fuzz SECONDS=600   spoiled tables, vector files, manifests and settings for the readers; what they do not answer rightly becomes a test"
	@echo "make soak               memory and open files while 50,000 small units pass through stages 1 and 3"
	@echo "make real DATA=FOLDER   all five stages on real imagery and flows; prints the table of docs/results.md"
	@echo "make evaluate DATA=FOLDER  held-out places of real cities, five seeds, with every control (about half an hour on 2 cores)"
	@echo "make evaluate-cities DATA=FOLDER  which borough is this tile of, five seeds, beside band statistics"
	@echo "make bench DATA=FOLDER  every stage beside a plain way to do the same, and how the work grows (about half an hour on 2 cores)"
	@echo "make acquire-check      asks every public address, and compares the counties of M1 to M10 with the Census Bureau's (needs the network)"
	@echo "make reliability        writes the list of bad inputs in docs/reliability.md"
	@echo "make check              formatting, lint, types"
	@echo "make clean              remove .venv and what the demo wrote"

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one with make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash runs/demo.sh

cities: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash runs/cities.sh

figs: $(INSTALLED)
	test -d demo/outputs || $(MAKE) --no-print-directory demo
	$(BIN)/jupyter execute --inplace --kernel_name=python3 figs.ipynb

test: $(INSTALLED)
	$(BIN)/python -m pytest $(BESIDE)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest $(BESIDE) -m "not gpu and not network"

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)

soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak

real: $(INSTALLED)
	$(BIN)/python benchmarks/real_sample.py --data $(DATA)

evaluate: $(INSTALLED)
	$(BIN)/python benchmarks/evaluate_sample.py --data $(DATA)

evaluate-cities: $(INSTALLED)
	$(BIN)/python benchmarks/cities_sample.py --data $(DATA)

bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench.py --data $(DATA)

acquire-check: $(INSTALLED)
	$(BIN)/python -m pytest -v -m network tests/sources/test_public_addresses.py

reliability: $(INSTALLED)
	$(BIN)/python -m tests.faults.reliability

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo
