# Needs only Python 3.11 and make. TORCH=cuda takes the build of torch for NVIDIA GPUs.
PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= cpu
MINUTES ?= 5.4
CDM_RUNS ?= runs

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(TORCH)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
# "===" refuses a local version such as 2.13.0+cpu, so pip takes the standard build, which has CUDA.
TORCH_PIN := $(shell grep '^torch==' constraints.txt)
TORCH_cpu := $(TORCH_PIN)
TORCH_cuda := $(subst ==,===,$(TORCH_PIN))

.PHONY: install install-oracles demo test check bench docs clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(if $(TORCH_$(TORCH)),,$(error TORCH is "$(TORCH)"; expected cpu or cuda))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH_$(TORCH))' hatchling
	$(PIP) --no-build-isolation --editable '.[tensorboard,eval,dev]'
	touch $@

# torch-fidelity asks for torchvision, whose wheel is often built for another torch and then breaks what finds it. Its
# own wheel has a top-level package "tests", which would hide ours.
install-oracles: $(STAMP)
	$(PIP) --no-deps $(shell grep '^torch-fidelity==' constraints.txt)
	rm -rf $(VENV)/lib/python3*/site-packages/tests

demo: $(STAMP)
	$(BIN)/cdm train builtin:letters --recipe demo --minutes $(MINUTES) --out $(CDM_RUNS)/demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo --no-cache

# Each script writes its own file under benchmarks/results/. Those after one that misses its limit run too. Data for
# few_evaluations.py and peers for throughput.py are brought by hand: their first lines say how.
bench: $(STAMP)
	failed=; for script in $(filter-out %/readme_table.py,$(sort $(wildcard benchmarks/*.py))); do \
	  echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
	  test -z "$$failed" || { echo "over a limit or failed:$$failed"; exit 1; }

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
