# make demo   set-up, build, and the two trainings of `fastnn demo` (arguments: make demo ARGS="images --epochs 5")
# make test   set-up, build, and the test-suite                     (arguments: make test ARGS="-k conv2d")
#
# Each does all its own set-up in a virtual environment, and is quick when repeated. Variables:
#   TORCH=2.13.0     the torch to install and build for (2.10 or newer)
#   PYTHON=python3   the interpreter that makes the environment
#   VENV=.venv       where it goes
PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv
ARGS ?=
# Of the CPU kernels what this processor runs is compiled for speed, the rest not optimised.
export FASTNN_CPU ?= native
# The tests run the CUDA kernels under the emulator, a quarter of what there is to compile; `make demo` has no use for it.
FASTNN_EMULATOR ?= on
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools-$(TORCH)
BUILT := $(VENV)/.built-$(TORCH)
EMULATED := $(VENV)/.emulated-$(TORCH)
DISASSEMBLER := .venv-cuda/.disassembler
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
INSTALL = FASTNN_EMULATOR=$(1) $(BIN)/python -m pip install --quiet -c constraints.txt "torch==$(TORCH)" \
  --no-build-isolation --editable ".[dev]"

.PHONY: demo test build lint format cuda-report cuda-sass clean

demo: $(BUILT)
	$(BIN)/fastnn demo $(ARGS)

test: build
	$(BIN)/python -m pytest -n auto $(ARGS)

build: $(EMULATED)

$(TOOLS): constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==$(TORCH)" numpy setuptools wheel cmake ninja pybind11
	rm -f $(VENV)/.tools-* && touch $@

# Where the emulator has been built it stays a part of the build.
$(BUILT): $(TOOLS) $(SOURCES)
	$(call INSTALL,$(if $(wildcard $(VENV)/.emulated-*),$(FASTNN_EMULATOR),off))
	rm -f $(VENV)/.built-* && touch $@

$(EMULATED): $(TOOLS) $(SOURCES) $(shell find tests/emulator -type f)
	$(call INSTALL,$(FASTNN_EMULATOR))
	rm -f $(VENV)/.built-* $(VENV)/.emulated-* && touch $(BUILT) $@

lint: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

format: $(BUILT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

# Registers, shared memory and spills of every kernel, as nvcc reports them; needs nvcc, no GPU.
cuda-report:
	$(PYTHON) tools/cuda_resources.py --objects build/cuda_objects --out build/cuda_resources.json \
	  --compare benchmarks/results/cuda_resources.json $(ARGS)

# Instructions of the tensor-core kernels. Of the report's objects and the CUDA build's it takes what is up to date.
cuda-sass: $(DISASSEMBLER)
	.venv-cuda/bin/python tools/cuda_sass.py --objects build/cuda_objects build/cmake-cuda \
	  --compare benchmarks/results/cuda_sass.json $(ARGS)

$(DISASSEMBLER): constraints.txt
	[ -x .venv-cuda/bin/python ] || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install --quiet -c constraints.txt nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

clean:
	rm -rf build $(VENV) fastnn/*.so fastnn/_build.json *.egg-info
