# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without an NVIDIA GPU this exact version lets pip choose a CPU build where one is offered; TORCH= overrides it, as in
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH ?= torch==2.13.0
else
TORCH ?= torch>=2.6
endif

# Two workers, each with its share of the cores: see tests/conftest.py. WORKERS= runs the tests in one process.
WORKERS ?= 2
PARALLEL := $(if $(WORKERS),--numprocesses $(WORKERS))

.PHONY: demo test test-comfyui test-engines system-packages lint compatibility clean

demo: $(VENV)/installed-demo
	$(BIN)/sedialect demo $(ARGS)

test: system-packages $(VENV)/installed-dev lint
	$(BIN)/pytest $(PARALLEL) $(ARGS)

system-packages:
	@.ci/system-packages

# The nodes in a real ComfyUI: make test-comfyui COMFYUI_DIR=... [COMFYUI_PYTHON=...], the latter being the interpreter that
# ComfyUI and requirements.txt are installed for, with diffusers and transformers, which decode and prompt in these tests.
COMFYUI_PYTHON ?= $(COMFYUI_DIR)/venv/bin/python
test-comfyui: $(VENV)/installed-dev
	@test -f "$(COMFYUI_DIR)/comfyui_version.py" || { echo "COMFYUI_DIR must name a ComfyUI, not '$(COMFYUI_DIR)'"; exit 2; }
	COMFYUI_DIR="$(abspath $(COMFYUI_DIR))" COMFYUI_PYTHON="$(COMFYUI_PYTHON)" $(BIN)/pytest $(sort $(wildcard tests/nodes/test_comfyui*.py)) $(ARGS)

# Other engines, whose packages are large and pin others: each in an environment of its own over .venv, without what it asks for
# that these tests do not need.
XDIT ?= xfuser==0.7.* yunchang distvae einops torchao
test-engines: $(VENV)/engines/xdit
	$</bin/python -P -m pytest -rs tests/core/integrations/test_xdit.py $(ARGS)

$(VENV)/engines/xdit: $(VENV)/installed-dev
	$(BIN)/python -m venv $@
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" > \
		$$($@/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/over.pth
	$@/bin/pip install --quiet --no-deps $(XDIT)
	touch $@

# mypy wants the package's name for the folder, whatever the checkout is called.
lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typed && ln -sfn $(CURDIR) $(VENV)/typed/sedialect
	cd $(VENV)/typed && ../bin/mypy --config-file ../../pyproject.toml -m sedialect -p sedialect.kernels -p sedialect.sedialect_core -p sedialect.bench -p sedialect.cli -p sedialect.training

# The table of docs/compatibility.md, from the outcomes of its tests.
compatibility: $(VENV)/installed-dev
	PYTHONPATH=tests/helpers $(BIN)/python -m pytest -p compatibility_table --write-compatibility docs/compatibility.md -m feature $(PARALLEL) $(ARGS)

$(VENV)/installed-%: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
