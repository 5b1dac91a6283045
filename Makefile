# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
DEMO_ARGS ?=
TEST_ARGS ?=

.PHONY: setup demo test test-fast lint lock clean

setup:
	@PYTHON="$(PYTHON)" sh requirements/setup.sh

demo: setup
	@.venv/bin/rayward demo $(DEMO_ARGS)

# In two processes, of one thread each: two threads on a core wait for each other.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --maxprocesses 2

test: setup
	@$(PYTEST) $(TEST_ARGS)

# What starts neither Ray nor an engine nor a service.
test-fast: setup
	@$(PYTEST) -m "not engine" $(TEST_ARGS)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

# Where pip finds torch's CPU build in a folder (PIP_FIND_LINKS), uv looks there too.
lock: setup
	@UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" .venv/bin/uv pip compile pyproject.toml \
		--extra cpu --extra dev --python-version 3.11 --upgrade --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		-o requirements/lock.txt

clean:
	rm -rf .venv runs
