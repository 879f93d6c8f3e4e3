# Each target sets up what it needs in .venv and runs. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN ?=
RUNS ?=
NGPU ?= 1
BUDGET ?= cpu
MODEL ?=
DATA ?=
ARGS ?=
# a stamp, so that the environment is made once for each state of its two files
READY := $(VENV)/.ready
# the environment of the demo: some hundred megabytes, no torch
DEMO := .venv-demo
DEMO_READY := $(DEMO)/.ready

.DEFAULT_GOAL := help
.PHONY: help install data check train-ham train-table train-cifar eval score audit export challenge index box demo bench reproduce test test-all backbones load replicas examples lint docs package format clean

help: ## list the targets
	@echo 'Targets (ARGS="key=value …" overrides the config, RUN=runs/NAME names the run):'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

define python-or-a-sentence
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "dermrw requires Python 3.11 or newer, but $(PYTHON) is older or missing: name one, such as make PYTHON=python3.12 …" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python's venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
endef

$(READY): pyproject.toml setup.py constraints.txt
	$(python-or-a-sentence)
	@echo "Setting up $(VENV) (once; some gigabytes with CUDA, see README for a small CPU-only set-up)"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

$(DEMO_READY): app/requirements.txt constraints.txt
	$(python-or-a-sentence)
	@echo "Setting up $(DEMO) (once; the packages of the demo, without torch)"
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r app/requirements.txt
	@touch $(DEMO_READY)

install: $(READY) ## set up .venv

data: $(READY) ## download HAM10000 and the official ISIC 2018 sets (3 GB; CC BY-NC 4.0)
	$(PY) -m dermrw download $(ARGS)

check: $(READY) ## list the files that the data folder contains and lacks (ARGS=FOLDER, ARGS="data.extra=TABLE")
	$(PY) -m dermrw check $(ARGS)

train-ham: $(READY) ## train on HAM10000 (NGPU=2: in two processes), or on the sample of drawings if it is not found
	$(PY) -m dermrw train configs/ham.yaml $(ARGS) $(if $(RUN),--run "$(RUN)") --processes $(NGPU)

train-table: $(READY) ## train on your own images: DATA=table.csv, or a folder with a folder per class
	$(PY) -m dermrw train configs/table.yaml $(if $(DATA),data.root="$(DATA)") $(ARGS) $(if $(RUN),--run "$(RUN)")

train-cifar: $(READY) ## the toy problem: CIFAR-10 with 50 to 90 % birds, reweighting and plain SGD
	for bias in 50 60 70 80 90; do for method in reweight:reweight sgd:erm; do \
	  name=cifar_$${bias}_$${method%%:*}; \
	  $(PY) -m dermrw train configs/cifar.yaml name=$$name data.bias=0.$$bias objective=$${method#*:} $(ARGS) \
	    --run "$(or $(RUN),runs)/$$name" || exit $$?; \
	  $(PY) -m dermrw eval "$(or $(RUN),runs)/$$name" || exit $$?; \
	done; done

eval: $(READY) ## evaluate a run (default: the latest): balanced accuracy, report.json, report.html
	$(PY) -m dermrw eval $(if $(RUN),"$(RUN)") $(ARGS)

score: $(READY) ## score a model (default: the one shipped) on DATA=table.csv or a folder per class (MODEL=, ARGS="--map …")
	$(PY) -m dermrw score $(if $(MODEL),"$(MODEL)") $(if $(DATA),"$(DATA)") $(ARGS)

audit: $(READY) ## show the training images with the lowest weights in a run (default: the latest)
	$(PY) -m dermrw audit $(if $(RUN),"$(RUN)") $(ARGS)

export: $(READY) ## write model.onnx and MODEL_CARD.md of a run (default: the latest), or of RUNS="A B" ARGS="-o FILE"
	$(PY) -m export $(if $(RUNS),$(RUNS),$(if $(RUN),"$(RUN)")) $(ARGS)

challenge: $(READY) ## test a run's exported model on out-of-distribution and on damaged images
	$(PY) -m export.stress_test $(if $(RUN),"$(RUN)") $(ARGS)

index: $(READY) ## let the demo show the nearest cases of your HAM10000 (MODEL=file.onnx)
	$(PY) -m export.index $(if $(MODEL)$(RUN),"$(or $(MODEL),$(RUN))") $(ARGS)

demo: $(DEMO_READY) ## serve the model shipped with dermrw, MODEL=file.onnx or RUN=runs/NAME in your browser
	$(DEMO)/bin/python -m app $(if $(MODEL)$(RUN),"$(or $(MODEL),$(RUN))") $(ARGS)

bench: $(READY) ## time reweighting against plain training and other implementations (ARGS="growth --repeats 3")
	$(PY) -m dermrw.bench $(ARGS) $(if $(RUN),--run "$(RUN)")

reproduce: $(READY) ## perform the missing runs of the study and write its report (BUDGET=full, ARGS="--list")
	$(PY) -m dermrw.study --budget $(BUDGET) $(ARGS)

box: $(READY) ## ship the model of RUN with dermrw, after make export and make challenge
	$(PY) -m export.ship "$(RUN)" $(ARGS)

test: $(READY) ## run the tests (ARGS="-m 'not slow'": without the browser and the end-to-end tests)
	$(PY) -m pytest -n auto --dist loadgroup $(ARGS)

test-all: $(READY) ## run all tests, and check the page wide and narrow, light and dark
	DERMRW_ALL_LOOKS=1 $(PY) -m pytest -n auto --dist loadgroup $(ARGS)

backbones: $(READY) ## test a network of each of timm's families (takes long)
	DERMRW_ALL_BACKBONES=1 $(PY) -m pytest -n auto tests/reweight/test_timm_models.py tests/export/test_timm_export.py $(ARGS)

load: $(READY) ## measure the demo with many concurrent users (ARGS="--users 20 --requests 2000")
	PYTHONPATH=.:tests $(PY) tests/tools/load.py $(ARGS)

replicas: $(READY) ## run two demos behind nginx and kill one of them (requires nginx)
	PYTHONPATH=.:tests $(PY) tests/tools/replicas.py $(ARGS)

examples: $(READY) ## after make box: draw the demo's examples and take the README's screenshot with the model shipped
	PYTHONPATH=.:tests $(PY) tests/tools/examples.py

lint: $(READY) ## run ruff, mypy and the import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(READY) ## build the documentation site in build/docs; a dead link fails
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs

package: $(READY) ## build the wheel and test it in a separate environment
	PY="$(PY)" bash tests/try_wheel.sh

format: $(READY) ## let ruff format the code
	$(VENV)/bin/ruff format .

clean: ## remove the environment and caches (runs and data stay)
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
