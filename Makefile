# Everything runs in a virtual environment; each command sets up what it needs.
#
#   make demo                the whole way: record, convert, train, drive the simulated arm
#   make demo ARGS=--state   the same without cameras, in half of the time
#   make robosuite           robosuite beside it: make demo ARGS='--sim robosuite/lift --state'
#   make pusht               PushT beside it: make demo ARGS='--sim pusht --state'
#   make test                the tests;  make test ARGS='-k contract'  some of them
#   make quick               those that need neither ROS nor a compiler, while working
#   make check               ruff, mypy, import-linter
#   make test-jazzy          the tests that touch ROS, with ROS 2 Jazzy and NumPy 1.26
#   make setup               only the set-up; another torch: make clean setup TORCH=torch==2.9.1
#   make clean               remove the environments and all that was generated

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=
DEMO_OUT ?= demo
# A test of nodes waits more than it computes: one process more than there are cores. A file stays
# in one process, for its tests may share a node.
JOBS ?= $(shell expr $$(nproc) + 1)
SIDE_BY_SIDE := -n $(JOBS) --dist loadfile --no-loadscope-reorder

VENV := .venv
JAZZY := .venv-jazzy
PIP := -m pip --disable-pip-version-check install --quiet

.PHONY: setup setup-jazzy demo robosuite pusht test quick test-jazzy check clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

setup-jazzy: $(JAZZY)/.ready

# torch first and pinned: what comes later is content with it and fetches no other build.
$(VENV)/.ready: setup.py Makefile
	@echo "Setting up $(VENV): $(TORCH) first, then everything else; the first time takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) "$(TORCH)"
	$(VENV)/bin/python $(PIP) --editable '.[ros,sim,plot,test,dev]'
	@scripts/opengl.sh $(VENV)/bin/python
	@touch $@

# Both releases have the same import names, hence an environment of its own. apt's ROS has NumPy 1.26,
# which the newest pyarrow does not take.
$(JAZZY)/.ready: setup.py Makefile
	@echo "Setting up $(JAZZY): $(TORCH) and NumPy 1.26 first, then ROS 2 Jazzy and everything else."
	$(PYTHON) -m venv $(JAZZY)
	$(JAZZY)/bin/python $(PIP) "$(TORCH)" "numpy==1.26.*"
	$(JAZZY)/bin/python $(PIP) --editable '.[ros-jazzy,sim,plot,test]' "numpy==1.26.*" "pyarrow<21"
	@scripts/opengl.sh $(JAZZY)/bin/python
	@touch $@

demo: setup
	$(VENV)/bin/diffusion-policy demo --out $(DEMO_OUT) --json $(DEMO_OUT)/demo.json $(ARGS)

# Without what it asks for, which would bring another MuJoCo: numba, termcolor and OpenCV are enough.
robosuite: setup
	$(VENV)/bin/python $(PIP) --editable '.[robosuite]'
	$(VENV)/bin/python $(PIP) --no-deps robosuite==1.5.2

pusht: setup
	$(VENV)/bin/python $(PIP) --editable '.[gym-pusht]' "pygame<2.7" opencv-python-headless
	$(VENV)/bin/python $(PIP) --no-deps gym-pusht

test: setup
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) --durations=15 $(ARGS)

quick: setup
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not ros and not compiles and not slow" $(ARGS)

test-jazzy: setup-jazzy
	$(JAZZY)/bin/python -m pytest $(SIDE_BY_SIDE) -m "ros and not slow" --durations=15 $(ARGS)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) $(JAZZY) build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache \
	    .hypothesis .import_linter_cache
