# Two commands set up everything: `make run` (the small job, from nothing to a result) and `make test`.
# Both make .venv first, once; it is made anew when a requirements file changes.

PYTHON ?= python3
BIN := .venv/bin
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test quick lint schema clean

run: .venv/.runs
	$(BIN)/python -m orchestrator run jobs/pretrain_digits.yaml

test: .venv/.tests
	$(BIN)/python -m pytest $(TWO)

quick: .venv/.tests  ## without clusters, servers, ranks and long programs: three minutes
	$(BIN)/python -m pytest $(TWO) -m "not cluster and not servers"

lint: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: .venv/.runs  ## jobs/schema.json and docs/job-keys.md, from the code
	$(BIN)/python -m orchestrator schema --write

.venv/.runs: requirements.txt constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	echo $(CURDIR) > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vit-at-scale.pth
	touch $@

.venv/.tests: .venv/.runs requirements-s3.txt requirements-onnx.txt requirements-dev.txt infra/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
