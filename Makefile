# Each target sets itself up in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
# A bar where a person watches, lines where a log does.
PROGRESS := $(shell test -t 2 && echo bar || echo lines)

.PHONY: demo test quick numeric soak test-python lint wheel clean bench bench-kernels gpu-test

demo: .venv/ready
	@rm -rf runs/demo
	$(BIN)/metazoo train protonet --dataset glyphs --train-ways 20 --steps 500 --validate-every 250 \
		--validation-episodes 100 --out runs/demo --progress $(PROGRESS)

test: .venv/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

quick: .venv/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

# Numbers, computed as on a processor without AVX: other processors round differently.
NUMERIC := algorithms backbones base evaluation nn tasks training kernels/test_kernels.py kernels/test_ops.py
numeric: .venv/ready
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=2 \
		$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow" \
		$(addprefix tests/,$(NUMERIC))

# Damaged inputs, kills, full disks, bad servers (docs/reliability.md): make soak ARGS="--only weights --case 17"
soak: .venv/ready
	$(BIN)/python -m tests.soak $(ARGS)

# The quick tests under another Python, and another torch: make test-python PYTHON=python3.10 TORCH=2.11.0
OTHER = .venv-$(notdir $(PYTHON))$(addprefix -torch,$(TORCH))
test-python:
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet "setuptools>=77,<82" \
		$(if $(TORCH),torch==$(TORCH),-c constraints.txt torch)
	$(OTHER)/bin/python -m pip install --quiet $(if $(TORCH),,-c constraints.txt) \
		--no-build-isolation -e ".[dev]"
	$(OTHER)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: .venv/ready
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

# ARGS names benchmarks and adds options: make bench ARGS="drawing startup"
bench: .venv/bench
	$(BIN)/python -m benchmarks $(ARGS)

# The group `bench` of pyproject.toml. Without --no-deps, easyfsl's torchvision replaces torch by one for CUDA.
.venv/bench: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps easyfsl higher tqdm
	@touch $@

# ARGS adds options: make bench-kernels ARGS="--device cuda"
bench-kernels: .venv/ready
	$(BIN)/python -m benchmarks kernels $(ARGS)

# On a machine with a GPU, offline: PYTHON has torch for CUDA, metazoo's dependencies and pytest (docs/kernels.md).
gpu-test:
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt "setuptools>=77"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info runs/demo
