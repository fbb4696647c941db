# Set-up, main job and checks from a bare machine with Python >= 3.10, a C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt $(shell find python csrc kernels -type f -not -path '*/__pycache__/*')

.PHONY: demo test test-oldest native-test stress sanitize fuzz mutation wheelcheck bench docs lint clean

demo: $(VENV)/installed
	$(BIN)/python -m grainrank demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2
	$(BIN)/python -m pytest -n 2 --dist loadfile -m compiled

# The adapters with the oldest libraries that they support.
test-oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet -c constraints-oldest.txt torch
	build/oldest/bin/pip install --quiet -c constraints-oldest.txt '.[st]' lightning pillow pytest
	build/oldest/bin/pip install --quiet -c constraints-oldest.txt --no-deps open_clip_torch ftfy wcwidth
	build/oldest/bin/python -m pytest tests/integrations tests/test_grad_cache.py tests/test_evaluate_models.py

# Ten thousand steps, and as many calls.
stress: $(VENV)/installed
	$(BIN)/python -m pytest -m stress

native-test:
	cmake -S . -B build/native -DGRAINRANK_NATIVE_TESTS=ON $(CMAKE_ARGS)
	cmake --build build/native --parallel 2
	ctest --test-dir build/native --output-on-failure

# The C++ under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; needs gcc.
sanitize: $(VENV)/installed
	tests/native/sanitize.sh $(BIN)

# Hostile inputs, other ones every time, so many for each test of tests/fuzz.
FUZZ_EXAMPLES := 2500
fuzz: $(VENV)/installed
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz -q

# One line of the kernels and passes changed at a time: a test has to fail. Long; goes on where it stopped.
mutation: $(VENV)/installed
	$(BIN)/python tests/mutation/check.py --resume

# The sdist, wheels from it, and what they do in fresh environments; WHEELCHECK=--quick: one of them.
wheelcheck:
	$(PYTHON) -m venv build/wheelcheck-tools
	build/wheelcheck-tools/bin/pip install --quiet -r tests/wheelcheck/requirements.txt
	build/wheelcheck-tools/bin/python tests/wheelcheck/check.py $(WHEELCHECK)

bench: $(VENV)/installed
	mkdir -p build
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json=build/bench.json

# The pages of docs/ and the API reference, in build/docs.
docs: $(VENV)/installed
	$(PIP) install --quiet -c constraints.txt 'grainrank[docs]'
	$(BIN)/mkdocs build --strict

lint: $(VENV)/lint-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp kernels/cuda/* tests/native/*.h tests/native/*.cpp tests/ptxsim/runtime/*
	tests/native/tidy.sh $(BIN)
	$(BIN)/mypy

# torch first and on its own: its pinned wheel decides what the rest resolves against.
$(VENV)/ready: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch
	touch $@

# The wheel that a user gets, not an editable install; the build folder is kept, so this is quick when repeated.
# With CUDA where nvcc is on the PATH. Its warnings and spilled registers are errors.
# Without their dependencies: of these the functions that the tests call need torch alone. torchvision, which
# open_clip wants, is a build for another torch.
$(VENV)/installed: $(VENV)/ready $(SOURCES)
	GRAINRANK_STRICT=ON $(PIP) install --quiet -c constraints.txt '.[demo,eval,test,peers]'
	$(PIP) install --quiet -c constraints.txt --no-deps open_clip_torch ftfy wcwidth trl
	touch $@

$(VENV)/lint-tools: $(VENV)/installed
	$(PIP) install --quiet -c constraints.txt 'grainrank[lint]'
	touch $@

clean:
	rm -rf build $(VENV)
