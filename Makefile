# Every target sets up what it needs in .venv. ARGS="…" is passed on; PYTHON=/path/to/python3 chooses the Python.
# make reports any failure as status 2: for the exact exit status of a demo, run .venv/bin/springtide demo itself.

.PHONY: help demo test test-long torture simulate-seeds check bench lock clean
.DEFAULT_GOAL := help
export PYTHON
FAULTS ?= 200
SEEDS ?= 1000

help:
	@echo 'make demo    a whole sale on this machine, live, with a report   (ARGS="--help" lists its options)'
	@echo 'make test    the tests                                           (ARGS="tests/unit -k NAME")'
	@echo 'make test-long  what takes longer: lost zones, killed loops, containers, image lines'
	@echo 'make torture the loss test: 200 faults while it sells, 10 minutes   (FAULTS=40 ARGS="--seed 2")'
	@echo 'make simulate-seeds  1,000 seeds of random faults in a simulated sale, in two processes   (SEEDS=100)'
	@echo 'make check   lint, formatting, types, layers'
	@echo 'make bench   the measurements                                    (ARGS="--help")'
	@echo 'make lock    renew requirements/*.txt after a change in pyproject.toml   (ARGS="--upgrade")'
	@echo 'make clean   remove .venv, caches and build results'

demo:
	@sh tools/setup.sh runtime
	@exec .venv/bin/springtide demo $(ARGS)

test:
	@sh tools/setup.sh dev
	@exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile -m "not long" $(ARGS)

test-long:
	@sh tools/setup.sh dev
	@exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile -m long $(ARGS)

torture:
	@sh tools/setup.sh runtime
	@exec .venv/bin/springtide torture --faults $(FAULTS) $(ARGS)

simulate-seeds:
	@sh tools/setup.sh runtime
	@exec .venv/bin/springtide simulate small --seeds $(SEEDS) --processes 2 $(ARGS)

check:
	@sh tools/setup.sh dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench:
	@sh tools/setup.sh dev
	@exec .venv/bin/python -m bench $(ARGS)

lock:
	@sh tools/lock.sh $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
