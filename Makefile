# Everything from a fresh clone needs only Python ≥ 3.11, git and make.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= glyphs
MAX_BAD ?= 0.01
# glyphs, or the last part of the path and a checksum of the whole, so that two folders of one name stay apart.
NAME := $(shell test '$(DATA)' = glyphs && echo glyphs || \
	{ p=$$(realpath '$(DATA)'); b=$$(basename "$$p" | tr -cs 'A-Za-z0-9\n' '-'); echo "$$b-$$(printf %s "$$p" | cksum | cut -d' ' -f1)"; })

.PHONY: demo test test-cluster h100 check format clean
.DELETE_ON_ERROR:

# The main job, on the embedded data or on your own: make demo DATA=/path/to/folder [MAX_BAD=0.1]
demo: .venv/run.stamp
	@test -e datasets/$(NAME)/dataset.json || $(BIN)/pixtok data build '$(DATA)' datasets/$(NAME) --image_size 64 --max_bad $(MAX_BAD)
	$(BIN)/pixtok train experiments/demo.py --data.path datasets/$(NAME) --run_dir runs/demo-$(NAME)
	$(BIN)/pixtok sample runs/demo-$(NAME) --n 4 --temperature 0.7
	@echo "score it: $(BIN)/pixtok eval runs/demo-$(NAME)"

test: check
	PYTHONPATH='$(CURDIR)/.venv/tpu' $(BIN)/pytest -n 2 --dist worksteal -q -m "not slow"

# What takes long, or needs the compilers of machines that are not here: GPU kernels are compiled for an H100.  Jobs of
# several processes run one after the other; a real Slurm is installed for one of them, where apt-get can.  What is compared
# with PyTorch has it at hand.
TORCH := tests/test_convert.py tests/test_bench.py
JOBS := tests/test_cluster.py tests/test_bucket.py tests/launch
test-cluster: .venv/cuda.stamp .venv/torch.stamp
	PYTHONPATH=.venv/cuda PATH="$$(dirname $$(find $(CURDIR)/.venv/cuda -name ptxas)):$$PATH" \
		$(BIN)/pytest -q tests/kernels/test_pallas_gpu.py tests/test_compile.py -k compiles_for
	PYTHONPATH='$(CURDIR)/.venv/tpu' $(BIN)/pytest -n 2 --dist worksteal -q -m slow $(addprefix --ignore=,$(JOBS) $(TORCH))
	PYTHONPATH='$(CURDIR)/.venv/torch' $(BIN)/pytest -q $(TORCH)
	$(BIN)/pytest -q -m slow $(JOBS)

# All that a GPU is wanted for, in one command and MINUTES: make h100 OUT=results.  With the jax that is at hand: no .venv.
MINUTES ?= 9
TINY ?= 0
h100:
	@test -n '$(OUT)' || { echo "say where results go: make h100 OUT=DIR"; exit 2; }
	$(PYTHON) experiments/h100.py '$(OUT)' $(MINUTES) $(TINY)

# The static checks alone; pre-commit runs them too.
check: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pixtok needs Python 3.11 or later: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/test.stamp: .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
# The TPU compiler, where tests alone find it: without a TPU jax would say at every start that there is none.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/tpu \
		-c constraints.txt libtpu
	touch $@

# Only the compiler's parts of CUDA, where nothing else finds them: jax on a CPU has no use for them.
.venv/cuda.stamp: .venv/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/cuda \
		-c constraints.txt jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm
	touch $@

# PyTorch, which nothing but the tests of converted checkpoints needs; on Linux it may bring all of CUDA.
.venv/torch.stamp: .venv/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target .venv/torch \
		-c constraints.txt torch
	touch $@

clean:
	rm -rf .venv
