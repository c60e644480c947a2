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
# own wheel has a top-level package "tests", which would hide ours. Triton's interpreter runs the GPU kernels on a CPU.
install-oracles: $(STAMP)
	$(PIP) --no-deps $(shell grep '^torch-fidelity==' constraints.txt) 'triton; platform_system == "Linux"'
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

# Everything that is measured, each to its file under benchmarks/results/; some hours on 2 cores. What is not given is
# skipped and said: make bench GUIDED=checkout TRAIN=train.zip VAL=val.zip [BENCH_WORK=folder]. Those after one that
# misses its limit run too. All peers with the largest net take more than 24 GB, so some are left out there.
GUIDED ?=
TRAIN ?=
VAL ?=
BENCH_WORK ?= $(CDM_RUNS)/bench
PEER := $(if $(GUIDED),--peer guided-diffusion=$(GUIDED))
LETTERS := examples/letters $(if $(VAL),--data $(VAL)) $(if $(TRAIN),--train-data $(TRAIN))
LARGEST := --cases adm64 --without diffusers,denoising-diffusion-pytorch,imagen-pytorch --seconds 0.01
bench: $(STAMP)
	failed=; run() { echo "== $$*"; $(BIN)/python benchmarks/"$$@" || failed="$$failed $$1"; }; \
	  run contention.py; run sampler_overhead.py; run scoring.py; run kernels.py; \
	  run throughput.py --compile $(PEER); run throughput.py $(LARGEST) $(PEER); \
	  run few_evaluations.py $(LETTERS) --work $(BENCH_WORK)/few -n 5120 --long-images 512 \
	    --fast dpmpp_sde:profile:16,dpmpp_sde:logsnr:8; \
	  run equal_quality.py $(if $(GUIDED),--peer $(GUIDED)) $(if $(TRAIN),--data $(TRAIN)) $(if $(VAL),--val $(VAL)) \
	    --work $(BENCH_WORK)/equal; \
	  run level_search.py $(LETTERS) --work $(BENCH_WORK)/levels; \
	  $(BIN)/python benchmarks/readme_table.py; \
	  test -z "$$failed" || { echo "over a limit or failed:$$failed"; exit 1; }

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
