# Every target sets up what it needs in .venv: a fresh machine wants Python (3.10 or later, with venv), gcc and make.

PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests

.PHONY: demo test lint check test-fla torch-npu bench hardware compile wheel clean

demo: .venv/ready  ## print the plan, check against the oracle, train a small model on real text, generate, save
	$(BIN)/portable-gla demo --out demo-out

test: lint check  ## everything that CI runs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m hardware_ci report --check
	$(BIN)/python -m hardware_ci workflow --check

check: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

test-fla: .venv/ready  ## flash-linear-attention's own tests on these functions: make test-fla FLA_TESTS=/its/checkout
	$(BIN)/python tests/compat_fla/run.py $(FLA_TESTS)

torch-npu: .venv/ready  ## the Ascend backend on the real torch_npu, over stubs of CANN: downloads hundreds of MB once
	$(BIN)/python tests/real_torch_npu/run.py

bench: .venv/ready  ## time against T beside PyTorch's attention
	$(BIN)/portable-gla bench --plot bench.png

hardware: .venv/ready  ## conformance, sanitizer and benchmarks on this machine's device
	$(BIN)/python -m hardware_ci run

compile: .venv/ready  ## every GPU kernel in every configuration for every architecture: hours
	$(BIN)/python -m hardware_ci compile --backend triton
	$(BIN)/python -m hardware_ci compile --backend volta
	$(BIN)/python -m hardware_ci compile --backend ascend

wheel: .venv/ready
	$(BIN)/python -m build --no-isolation --wheel

# The CPU kernels are compiled when the package is installed, so the environment follows their sources too.
.venv/ready: pyproject.toml requirements-dev.txt hatch_build.py $(wildcard backends/cpu/portable_gla_cpu/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf .venv build dist demo-out bench.png
	find backends -name '*.so' -delete
