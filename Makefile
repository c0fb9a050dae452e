# Every target works on a fresh clone: it makes .venv itself, and a second run finds it up to date.
# Needs Python 3.11 to 3.13, make and git.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
LOG := build/logs
# Nothing of the caller's Python leaks in, and notebooks find .venv's kernel and `llmopt` first.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
export PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Where a book of this scale is rendered: `_build/html` is the book, the others are for checks.
LLMOPT_SCALE ?= classroom
export LLMOPT_SCALE
BOOK_OUTPUT ?= $(if $(filter classroom,$(LLMOPT_SCALE)),.,build/book-$(LLMOPT_SCALE))

# What a bare container (root, apt-get) lacks is installed there once: $(call debian,packages,what for).
debian = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "Installing Debian's $(1) for $(2) ..."; \
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1); } \
    >$(LOG)/apt.log 2>&1 || echo "  not possible here ($(LOG)/apt.log)"; fi

# The system's libraries that the wheels of LLVM and Graphviz count on, and Debian's packages of them.
NEEDED := libatomic.so.1 libgobject-2.0.so.0 libXext.so.6 libXrender.so.1
NEEDED_DEBIAN := libatomic1 libglib2.0-0 libxext6 libxrender1

.PHONY: help env book test lint bench clean lab browser lock

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo
	@echo "  LLMOPT_SCALE=smoke|classroom|reference sets every size (now: $(LLMOPT_SCALE))."
	@echo "  PYTHON=python3.12 picks the Python that .venv is made with."

env: ## Make or update .venv from requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "llmopt: no $(PYTHON) here. Install Python 3.11 to 3.13, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llmopt: $(PYTHON) is $$($(PYTHON) -V), and 3.11 to 3.13 is needed. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@mkdir -p $(LOG)
	@[ "$$(uname -s)" != Linux ] || $(PYTHON) -c 'import ctypes, sys; [ctypes.CDLL(n) for n in sys.argv[1:]]' $(NEEDED) 2>/dev/null \
	  || { $(call debian,$(NEEDED_DEBIAN),LLVM and Graphviz); }  # `llmopt doctor` names what is still missing
	@key="$(CURDIR) $$(cksum requirements.lock pyproject.toml)"; \
	old="$$(cat .venv/llmopt-stamp 2>/dev/null || true)"; \
	if [ "$$old" != "$$key" ] || [ ! -x $(BIN)/python ]; then \
	  case "$$old" in ""|"$(CURDIR) "*) ;; *) rm -rf .venv;; esac; `# its scripts name the folder it was made in` \
	  echo "Installing requirements.lock into .venv (a few minutes the first time) ..."; \
	  { [ -x $(BIN)/python ] || $(PYTHON) -m venv --clear .venv; } >$(LOG)/pip.log 2>&1 \
	    || { cat $(LOG)/pip.log >&2; echo "llmopt: could not make .venv; on Debian or Ubuntu: apt-get install python3-venv" >&2; rm -rf .venv; exit 1; }; \
	  { $(BIN)/python -m pip install -q -r requirements.lock \
	    && $(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .; } >>$(LOG)/pip.log 2>&1 \
	    || { grep -v 'is ignored: it is' $(LOG)/pip.log | tail -n 30 >&2 || true; echo "llmopt: installing failed; the whole log is $(LOG)/pip.log" >&2; exit 1; }; \
	  printf '%s\n' "$$key" >.venv/llmopt-stamp; \
	fi

book: env ## Run every notebook and render the book into _build/html
	@$(BIN)/python book/build.py --output $(BOOK_OUTPUT)

test: env browser ## Run the tests (pass options with ARGS="-k name")
	@$(BIN)/python -m pytest $(ARGS)

lint: env ## Check style, and that notebooks hold no outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --output-format concise .
	@$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

bench: env ## Time LLVM in process against opt, and the other benchmarks
	@$(BIN)/llmopt bench compile $(ARGS)

lab: env ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks $$([ "$$(id -u)" != 0 ] || echo --allow-root) $(ARGS)

clean: ## Remove everything that was made, but .venv
	@rm -rf build _build .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find llmopt tests book -name __pycache__ -type d -prune -exec rm -rf {} +

# Where Chromium cannot be installed, the tests that need it say how to and skip.
browser:
	@mkdir -p $(LOG)
	@command -v chromedriver >/dev/null || { $(call debian,chromium chromium-driver,the browser tests); }

# Renew the pins (needs `uv`). GPU packages are left out: pip adds what the platform's torch asks for.
lock:
	@uv pip compile -q --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate \
	  --extra book --extra test $(ARGS) pyproject.toml \
	  | sed -E "s/ ; [^;]*sys_platform != 'emscripten'.*$$//" \
	  | grep -vE '^(nvidia|cuda|triton|pip==|pywinpty|httpx2-jsfetch)' >build/requirements.txt
	@{ echo "# Every version that llmopt runs with, for Python 3.11 to 3.13 on Linux and macOS (arm64)."; \
	   echo "# Made from pyproject.toml by \`make lock\`; install with: pip install -r requirements.lock"; \
	   cat build/requirements.txt; } >requirements.lock
