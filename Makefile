# Two commands for a newcomer: `make demo` and `make test`. Both set everything up in .venv first.

PYTHON ?= python3
VENV ?= .venv
# The version that CI tested. To use another build of PyTorch: make demo TORCH=torch==2.11.0
TORCH ?= $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
BIN := $(VENV)/bin
NATIVE := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt
CPP := $(shell find csrc -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint native-test python-test format clean

demo: $(VENV)/.installed
	$(BIN)/franca-fast demo

test: lint native-test python-test

# PyTorch first and by itself, so that no other package chooses its version.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH) -c constraints.txt
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(NATIVE)
	$(PIP) install --quiet -c constraints.txt --editable '.[plots]'
	touch $@

$(VENV)/.tested: $(VENV)/.torch $(NATIVE)
	FRANCA_FAST_BUILD=required $(PIP) install --quiet -c constraints.txt --editable '.[all,test]'
	touch $@ $(VENV)/.installed

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

native-test: $(VENV)/.tested
	$(BIN)/cmake -S . -B build/native -G Ninja -DFRANCA_FAST_TESTS=ON -DFRANCA_FAST_WERROR=ON \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python \
		-DFRANCA_FAST_CUDA=$(if $(shell command -v nvcc),on,auto)
	$(BIN)/cmake --build build/native
	$(BIN)/ctest --test-dir build/native --output-on-failure

# Two processes of one thread: whole files at a time, since their tests share what is slow to make.
python-test: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

format: $(VENV)/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) build franca_fast/_C*.so
