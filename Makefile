# A fresh machine needs two commands: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo real test check image lowest mutants bench gpu-check docs clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# a library that uses ours in a test; what it asks for itself lags behind, so it comes alone
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt gliner sentencepiece
	touch $@

demo: .venv/ready  ## convert the bundled decoder and show what it gained
	$(BIN)/python scripts/demo.py

real: .venv/ready  ## fetch SmolLM2-135M, convert it within an hour, and show what it gained; CORPUS=texts.txt
	$(BIN)/python scripts/real.py --corpus $(or $(CORPUS),self)

test: .venv/ready  ## every test, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/ready  ## format, lint, types, floors, dependencies, Dockerfile, generated pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/hadolint Dockerfile
	$(BIN)/python scripts/make_docs.py --check

image:  ## the container image that serves a mounted folder
	docker build --tag llm2vec .

lowest:  ## tests with the lowest versions that are declared; TORCH=lowest for torch's too
	$(PYTHON) scripts/lowest.py $(if $(TORCH),--torch $(TORCH))

mutants: .venv/ready  ## small changes of the code that no test notices; SAMPLE=20 for so many of a module
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -W ignore scripts/mutants.py $(if $(SAMPLE),--sample $(SAMPLE)) $(MODULES)

bench: .venv/ready  ## the speed figures of docs/results.md
	$(BIN)/python benchmarks/mntp_step.py
	$(BIN)/python benchmarks/encode.py

gpu-check: .venv/ready  ## proofs, equality, a step of each stage and speed on the GPU here; DEVICE=cpu without one
	$(BIN)/python benchmarks/gpu_check.py --device $(or $(DEVICE),cuda)
	$(if $(filter cpu,$(DEVICE)),,$(BIN)/python benchmarks/device_speed.py --model $(or $(MODEL),bundled))
	$(if $(filter cpu,$(DEVICE)),,$(BIN)/python benchmarks/device_speed.py --shape llama-3.2-1b)
	$(if $(filter cpu,$(DEVICE)),,$(BIN)/python benchmarks/device_speed.py --shape llama-3-8b)

docs: .venv/ready  ## write the generated pages, and the site from docs/ in site/
	$(BIN)/python scripts/make_docs.py
	$(BIN)/pip install --quiet --constraint constraints.txt '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv .venv-lowest .mutants demo real
