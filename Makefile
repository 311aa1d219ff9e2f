# Every target sets up what it needs in .venv; only Python >= 3.11 and make have to be there before.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The newest Python that is supported; one that pyenv holds, if there is no other.
PYTHON_NEWEST ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13) python3.13)

.PHONY: help demo test test-slow test-lowest test-newest test-programs lint bench programs notebooks docs package clean

help:  ## Show these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1@\2/p' $(MAKEFILE_LIST) | while IFS=@ read -r target text; do \
	  printf '%-18s %s\n' "$$target" "$$text"; done

demo: .venv/experiments.stamp  ## Compare the gradient normalizers on real digits, in one to three minutes
	$(BIN)/python -m experiments compare

# Compilation takes most of the tests' time, so XLA optimizes little; on the newest versions what its optimizations
# could change is tested once more as users compile.
COMPILE_QUICKLY_ON_NEWEST := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
  --xla_cpu_parallel_codegen_split_count=1
# The newest XLA does not know this flag any more, and an unknown one ends the process.
COMPILE_QUICKLY := $(COMPILE_QUICKLY_ON_NEWEST) --xla_cpu_use_fusion_emitters=false
# One more than there are cores: tests of processes of their own wait a lot.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(1 + (os.cpu_count() or 1))')
PYTEST := -m pytest -q -n

test: .venv/test.stamp  ## Run the tests, without the slow ones
	XLA_FLAGS="$(COMPILE_QUICKLY)" $(BIN)/python $(PYTEST) $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"
	@echo "Excluded: the tests marked slow (notebooks, whole studies, several hosts, memory), which make test-slow runs."

test-slow: .venv/test.stamp  ## Run the slow tests: notebooks, whole studies, several hosts, memory
	XLA_FLAGS="$(COMPILE_QUICKLY)" $(BIN)/python $(PYTEST) auto -m slow

test-lowest: .venv-lowest/stamp  ## Run the library's tests on the lowest versions that are declared
	XLA_FLAGS="$(COMPILE_QUICKLY)" .venv-lowest/bin/python $(PYTEST) auto optax_gradnorm tests/optax_gradnorm

test-newest: .venv-newest/stamp  ## Run the library's tests on the newest Python and JAX
	XLA_FLAGS="$(COMPILE_QUICKLY_ON_NEWEST)" .venv-newest/bin/python $(PYTEST) auto optax_gradnorm tests/optax_gradnorm
	.venv-newest/bin/python $(PYTEST) auto tests/optax_gradnorm/test_numerics.py tests/optax_gradnorm/test_contract.py

test-programs: .venv-programs/stamp  ## Compile for TPUs and GPUs that are not there, and test the programs
	.venv-programs/bin/python -m pytest -q -n auto tests/programs

lint: .venv/test.stamp  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: .venv/experiments.stamp  ## Time the transformations beside their peers
	$(BIN)/python -m benchmarks.transforms

programs: .venv-programs/stamp  ## Count what updates cost on TPUs and GPUs that are not there
	.venv-programs/bin/python -m benchmarks.programs

notebooks: .venv/notebooks.stamp  ## Execute the notebooks and save them with outputs
	$(BIN)/python notebooks/execute.py

docs: .venv/docs.stamp  ## Build the pages and the API reference
	$(BIN)/sphinx-build -W -q -b html docs docs/_build

package: .venv/package.stamp  ## Build wheel and sdist, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:  ## Remove the environment and everything generated
	rm -rf .venv .venv-lowest .venv-newest .venv-programs build dist docs/_build docs/jupyter_execute docs/notebooks docs/figures *.egg-info .pytest_cache .ruff_cache .hypothesis runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed, $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv-lowest/stamp: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints-lowest.txt --editable '.[test-library]'
	@touch $@

.venv-newest/stamp: pyproject.toml constraints-newest.txt
	$(PYTHON_NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints-newest.txt --editable '.[test-library]'
	@touch $@

.venv-programs/stamp: pyproject.toml constraints-newest.txt
	$(PYTHON_NEWEST) -m venv --clear .venv-programs
	.venv-programs/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints-newest.txt --editable '.[programs]'
	@touch $@

# One stamp per extra: a second call has nothing to install and starts at once.
.venv/%.stamp: .venv/venv.stamp pyproject.toml constraints.txt
	$(INSTALL) --editable '.[$*]'
	@touch $@
