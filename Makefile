# `make demo` and `make test` work on a machine with nothing but git, make and python3 (3.11 - 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AOT := .venv-aot
AOT_TPU := .venv-aot-tpu
BENCH := .venv-bench
BENCH_SEARCH := .venv-bench-search
SPARK := .venv-spark
WORKDIR ?= runs/demo
SIZE ?= tiny

.PHONY: system-packages help demo test test-slow test-prep-slow test-aot test-aot-tpu test-spark bench-input bench-retrieval lint docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole loop on the generated catalogue -> $(WORKDIR)/report.html"
	@echo "make test    the test suite (8 fake CPU devices)"
	@echo "make test-prep-slow  preparation killed in every step, inputs of every kind"
	@echo "make test-aot  HLO budgets, dtypes of reductions and the GPU recipe: compiled for H100s, without one (0.6 GB more)"
	@echo "make test-aot-tpu  the recipes and their collectives: compiled for TPU pods, without one (1.4 GB)"
	@echo "make test-spark  vitscale prep on Apache Spark writes the bytes of the direct runner (needs Java 17; 2 GB)"
	@echo "make bench-input  the input pipeline beside tf.data, PIL and PyTorch on real photos (1.1 GB more; 8 min)"
	@echo "make bench-retrieval  search beside FAISS, hnswlib and usearch, exact search, the bootstrap (0.3 GB more; an hour)"
	@echo "make system-packages  Debian's Chromium, Slurm and ShellCheck, for the tests that use them (as root)"
	@echo "make lint    ruff, import directions, mypy"
	@echo "make docs    the documentation site -> site/"

# One stamp a set of extras: the demo installs less than the tests do.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[prep]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

# What some tests talk to; they skip with a reason where it is missing. Needs root and Debian.
system-packages:
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		chromium slurm-wlm munge shellcheck

demo: $(VENV)/.demo
	$(BIN)/vitscale demo --workdir $(WORKDIR) --size $(SIZE)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

test-prep-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile tests/data_prep

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# XLA's CUDA compiler without a GPU: the plugin, and NVIDIA's ptxas and libdevice. Without their dependencies (cuBLAS,
# cuDNN, NCCL: 3 GB), which only a machine that runs the program needs. The plugin's version must be jax's.
$(AOT)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . pytest pytest-timeout
	jax=$$($(AOT)/bin/python -c 'import importlib.metadata as m; print(m.version("jax"))') && \
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		jax-cuda12-plugin==$$jax jax-cuda12-pjrt==$$jax nvidia-cuda-nvcc-cu12==12.9.86
	@touch $@

test-aot: $(AOT)/.ready
	$(AOT)/bin/python -m pytest -s -m slow tests/parallel/test_hlo_budget.py \
		tests/parallel/test_collectives.py tests/parallel/test_recipes.py tests/launch/test_plan_gpus.py

# libtpu holds the TPU compiler and needs no TPU to compile (1.4 GB).
$(AOT_TPU)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(AOT_TPU)
	$(AOT_TPU)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[aot-tpu]' pytest pytest-timeout
	@touch $@

test-aot-tpu: $(AOT_TPU)/.ready
	$(AOT_TPU)/bin/python -m pytest -s -m slow tests/parallel/test_recipes.py tests/parallel/test_collectives.py \
		tests/launch/test_plan_layouts.py

# pyspark brings its own Spark, half a gigabyte of it.
$(SPARK)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SPARK)
	$(SPARK)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[prep,spark]' pytest pytest-timeout
	@touch $@

test-spark: $(SPARK)/.ready
	$(SPARK)/bin/python -m pytest tests/data_prep/test_prep_spark.py

# TensorFlow and PyTorch to compare with. Apart, so that the tests run without TensorFlow, as a user does.
$(BENCH)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

$(BENCH): $(BENCH)/.ready

bench-input: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/input.py

# hnswlib is compiled as it is installed.
$(BENCH_SEARCH)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH_SEARCH)
	$(BENCH_SEARCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench-search]'
	@touch $@

bench-retrieval: $(BENCH_SEARCH)/.ready
	$(BENCH_SEARCH)/bin/python benchmarks/retrieval.py --exact
	$(BENCH_SEARCH)/bin/python benchmarks/retrieval.py --bootstrap
	$(BENCH_SEARCH)/bin/python benchmarks/retrieval.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(AOT) $(AOT_TPU) $(BENCH) $(BENCH_SEARCH) $(SPARK) build site runs *.egg-info .pytest_cache .ruff_cache .mypy_cache
