# `make demo` and `make test` work from a fresh clone with python3 (and its venv module), g++ and make.
PYTHON ?= python3
TORCH  := torch==2.13.0

# The CUDA kernels take nvcc minutes for seven architectures, and the tests run them by an emulator
# that needs no nvcc: `make install MMIX_FAST_CUDA=1` (or auto) for those who have a GPU.
# `make wheel` takes what it finds.
ASKED := $(MMIX_FAST_CUDA)
export MMIX_FAST_CUDA ?= 0

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.mmix_fast_installed

NATIVE  := $(sort $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh'))
CXX_ALL := $(sort $(NATIVE) $(shell find tests -name '*.cpp' -o -name '*.h' 2>/dev/null))

.PHONY: help install demo test test-deep lint format docs bench bench-check bench-update gpu wheel clean-room clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       backends, speed table, training on real digits, pictures"
	@echo "make test       all tests except the long ones"
	@echo "make test-deep  the long ones, and those against timm, torchvision, Lightning, transformers"
	@echo "make lint       ruff, mypy, clang-format: check only"
	@echo "make format     ruff and clang-format: rewrite"
	@echo "make docs       build/docs/: guides and API reference as a site, with every link checked"
	@echo "make bench      every measurement, the README's tables and the pictures (17 minutes)"
	@echo "make bench-check   what got slower since the stored run (benchmarks/results/check.json)"
	@echo "make bench-update  stores a new run for bench-check"
	@echo "make gpu        on a machine with a GPU: builds for it, tests, measures (10 minutes; DRY=1: no GPU)"
	@echo "make wheel      dist/: sdist, CPU wheel and, with nvcc (no GPU), CUDA wheel; MMIX_FAST_CUDA=0: no CUDA wheel"
	@echo "make clean-room audit what make wheel made, install it in a fresh environment, try it there"
	@echo "make install    .venv with everything, extension built (all the above do it first)"
	@echo "make clean      remove build products; .venv stays"

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Everything is installed when the packaging changed; only the extension is rebuilt when csrc changed.
$(STAMP): pyproject.toml setup.py $(NATIVE) | $(BIN)/python
ifneq ($(wildcard $(STAMP)),)
	@$(if $(filter-out $(NATIVE),$?),$(MAKE) --no-print-directory install-all,$(BIN)/python setup.py build_ext --inplace)
else
	@$(MAKE) --no-print-directory install-all
endif
	@echo $(MMIX_FAST_CUDA) > $@

# Another MMIX_FAST_CUDA than the one installed, where it is named.
ifneq ($(filter-out $(shell cat $(STAMP) 2>/dev/null),$(ASKED)),)
.PHONY: asked
$(STAMP): asked
endif

.PHONY: install-all
install-all:
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install $$($(BIN)/python -c "import re; print(*re.findall(r'\"((?:setuptools|ninja|wheel)==[^\"]*)\"', open('pyproject.toml').read()))")
	$(BIN)/python -m pip install -e ".[dev]" --no-build-isolation

demo: $(STAMP)
	$(BIN)/python -m benchmarks demo

# So many tests run at once, each in threads of its own. A worker without tests takes half of another's.
JOBS   ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

test: $(STAMP)
	$(PYTEST) -m "not deep"

# The libraries that mmix_fast/integrations stands in for. torch is named too, so that pip can only
# refuse, never replace it by a CUDA build of several GB.
WITH_PEERS := $(VENV)/.peers_installed
$(WITH_PEERS): tests/integrations/requirements.txt | $(STAMP)
	$(BIN)/python -m pip install $(TORCH) -r $<
	@touch $@

# pytest exits with 5 where no test is marked deep.
test-deep: $(WITH_PEERS)
	$(PYTEST) -m deep || [ $$? -eq 5 ]

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mmix_fast
	$(BIN)/clang-format --dry-run -Werror $(CXX_ALL)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_ALL)

WITH_SPHINX := $(VENV)/.sphinx_installed
$(WITH_SPHINX): docs/requirements.txt | $(STAMP)
	$(BIN)/python -m pip install -q -r $<
	@touch $@

# From nothing each time: a page that is gone must not be linked to.
docs: $(WITH_SPHINX)
	rm -rf build/docs
	$(BIN)/python -m sphinx -q -n -W --keep-going -c docs . build/docs
	$(BIN)/python docs/check_links.py build/docs
	@echo build/docs/docs/index.html

bench: $(STAMP)
	$(BIN)/python -m benchmarks all

bench-check: $(STAMP)
	$(BIN)/python -m benchmarks check

bench-update: $(STAMP)
	$(BIN)/python -m benchmarks check --update

# A GPU image has torch and no network: no .venv, and nothing is installed. PYTHON=... names another.
gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(DRY),--dry)

# Wheels are built from the sdist, so that it is seen to hold what it must. The version tells of a toolkit.
# pip would keep a wheel under the path of its sdist, and give it again for another sdist there.
wheel: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
wheel: $(STAMP)
	rm -rf dist
	MMIX_FAST_CUDA=0 $(BIN)/python -m build --no-isolation
	@version=$$(MMIX_FAST_CUDA=$(or $(ASKED),auto) $(BIN)/python setup.py --version) && \
	case $$version in *+cuda*) \
	  MMIX_FAST_CUDA=1 $(BIN)/python -m pip wheel dist/*.tar.gz --no-build-isolation --no-deps --no-cache-dir -w dist;; \
	esac

AUDITORS := $(VENV)/.auditors_installed
$(AUDITORS): tests/clean_room/requirements.txt | $(STAMP)
	$(BIN)/python -m pip install -q -r $<
	@touch $@

# What `make wheel` left in dist/.
clean-room: $(AUDITORS)
	$(BIN)/python tests/clean_room/audit.py dist
	$(BIN)/python tests/clean_room/check.py --torch $(lastword $(subst ==, ,$(TORCH))) dist/*.whl

clean:
	rm -rf build dist *.egg-info mmix_fast/*.so mmix_fast/build.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $(STAMP)
	find mmix_fast tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
