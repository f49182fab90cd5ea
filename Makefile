# One command per intent; each creates what it needs, from a bare clone. `make help` lists them.
# Needed beforehand: Python 3.11 or newer, cargo, and a C linker.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(p))))
CARGO ?= cargo
# Arguments for pytest: make test ARGS="-k cancel -x"
ARGS ?=
DIST ?= dist
# What the wheel of `make dist` is built for, if not for this machine, and more for maturin.
TARGET ?=
DIST_ARGS ?=
MATURIN ?= $(BIN)/maturin
# How long each fuzz target runs, and which: make fuzz FUZZ_SECONDS=600 FUZZ_TARGETS="sse json"
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= sse json frames response redact redact_known redact_time egress config http1

VENV := .venv
BIN := $(VENV)/bin
# Every cargo command sees the interpreter that maturin builds for, so nothing is compiled twice.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

# What has been installed is remembered by a stamp named after the dependency lists themselves:
# edit a list in pyproject.toml and the next command brings the environment up to date.
requirements = $(PYTHON) .ci/requirements.py
RUN := group:build project extra:demo extra:config
DEV := group:test group:lint
BENCH := group:bench
AUDIT := group:audit
stamp = $(VENV)/.stamp-$(1)-$(shell $(requirements) --hash $($(1)))

RUST_SOURCES := Cargo.toml pyproject.toml $(wildcard Cargo.lock) \
	$(shell find rust/core/src rust/net/src rust/python -name '*.rs' -o -name Cargo.toml 2>/dev/null)
BUILT := $(VENV)/.stamp-built

# Panic messages name source files: without this a binary would tell where it was built.
HERE_AND_CARGO := --remap-path-prefix=$(CURDIR)=. \
	--remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo
$(BUILT) dist: export RUSTFLAGS := $(strip $(RUSTFLAGS) $(HERE_AND_CARGO))
# The wheel is built in an unpacked sdist; it shares what has been compiled here.
dist: export CARGO_TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(BUILT) ## stream from a real llama.cpp server; URL=http://host:port uses yours instead
	@$(BIN)/worker-adapters demo $(if $(URL),--url '$(URL)')

.PHONY: test
test: test-rust loom test-python ## run every test: Rust, models of threads, Python, real llama.cpp, packaging

.PHONY: test-rust
test-rust: $(BIN)/python ## run the Rust tests
	$(CARGO) test --workspace --locked --quiet

.PHONY: test-python
test-python: $(call stamp,DEV) $(BUILT) ## run the Python tests (ARGS=... goes to pytest)
	$(BIN)/python -m pytest $(ARGS)

.PHONY: quick
quick: $(call stamp,DEV) $(BUILT) ## run the Python tests that need no engine and no build
	$(BIN)/python -m pytest -m 'not real and not slow' $(ARGS)

.PHONY: real-engines
real-engines: $(call stamp,DEV) $(BUILT) ## run the conformance suite on real engines; VLLM=path/to/vllm adds vLLM
	$(if $(VLLM),VLLM='$(abspath $(VLLM))') $(BIN)/python -m pytest -m real tests/conformance $(ARGS)

.PHONY: lint
lint: $(call stamp,DEV) $(call stamp,BENCH) $(BUILT) ## check format, lints, types, doc links, the stub, workflows, and that fuzz targets, models and a free-threaded build compile
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path rust/core/fuzz/Cargo.toml --check
	$(CARGO) fmt --manifest-path rust/loom/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked --quiet -- -D warnings
	@# Workspaces of their own: from here they share what is above. Nothing is linked, so that libFuzzer,
	@# which is C++, need not be there.
	CUSTOM_LIBFUZZER_PATH=/dev/null $(CARGO) clippy --manifest-path rust/core/fuzz/Cargo.toml \
		--target-dir '$(TARGET_DIR)' --locked --quiet -- -D warnings
	$(CARGO) clippy --manifest-path rust/loom/Cargo.toml --target-dir '$(TARGET_DIR)' --tests \
		--locked --quiet -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked --quiet
	PYO3_CONFIG_FILE='$(CURDIR)/.ci/free-threaded.txt' $(CARGO) check --package worker-adapters-python \
		--locked --quiet --target-dir '$(TARGET_DIR)/free-threaded'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest worker_adapters._core --mypy-config-file pyproject.toml \
		--allowlist .ci/stubtest-allowlist.txt
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet --no-progress --min-severity medium .github

.PHONY: fmt
fmt: $(call stamp,DEV) ## format Rust and Python and apply ruff's safe fixes
	$(CARGO) fmt --all
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZ_SECONDS, default 60; a crash is an error
	$(PYTHON) rust/core/fuzz/seeds.py
	cd rust/core/fuzz && env -u RUSTFLAGS $(CARGO) build --release --locked --quiet
	@# What a run has found is kept as small as it can be without covering less: the next one starts at once.
	cd rust/core/fuzz && mkdir -p artifacts && for target in $(FUZZ_TARGETS); do \
		echo "== $$target"; \
		case $$target in \
			sse|redact|redact_known) length=128 ;; \
			json|egress) length=256 ;; \
			*) length=1024 ;; \
		esac; \
		fuzz="env -u RUSTFLAGS $(CARGO) run --release --locked --quiet --bin $$target -- -max_len=$$length"; \
		mkdir -p corpus/$$target; \
		$$fuzz corpus/$$target seeds/$$target -dict=dictionaries/$$target.dict \
			-max_total_time=$(FUZZ_SECONDS) -reload=0 -reduce_inputs=0 -entropic_scale_per_exec_time=1 \
			-timeout=25 -verbosity=0 -print_final_stats=1 -artifact_prefix=artifacts/$$target-; \
		rm -rf corpus/merged && mkdir corpus/merged; \
		$$fuzz -merge=1 -verbosity=0 corpus/merged corpus/$$target; \
		rm -rf corpus/$$target && mv corpus/merged corpus/$$target; \
	done

.PHONY: soak
soak: $(call stamp,DEV) $(call stamp,BENCH) $(BUILT) ## load, faults and cancels, and what grows; LONG=1 for hours, ARGS="--peers cancels --cancels 1000000"
	$(BIN)/python -m tests.soak $(if $(LONG),--long) $(ARGS)

.PHONY: loom
loom: ## run what threads do to each other in every order
	$(CARGO) test --manifest-path rust/loom/Cargo.toml --target-dir '$(TARGET_DIR)' --locked --quiet --test models

.PHONY: mutants
mutants: ## break the code in every way and see which the tests notice; AREAS="sse json", SHARD=0/4
	.ci/mutants $(AREAS)

.PHONY: bench
bench: $(call stamp,BENCH) $(BUILT) ## measure it beside its peers in 10 minutes and rewrite benches/RESULTS.md
	$(BIN)/python -m benches.python.report

.PHONY: bench-full
bench-full: $(call stamp,BENCH) $(BUILT) ## the same at length; broken off, it goes on where it stopped
	$(BIN)/python -m benches.python.report --full

.PHONY: bench-instructions
bench-instructions: $(BIN)/python ## count the instructions of decoding per event, which repeat exactly
	$(BIN)/python -m benches.python.instructions --cargo $(CARGO) --check benches/instructions.json $(ARGS)

.PHONY: build
build: $(BUILT) ## build the extension into the virtual environment

.PHONY: dist
dist: SBOM = $(CARGO_TARGET_DIR)/sbom/worker_adapters.cdx.json
dist: $(if $(filter $(BIN)/%,$(MATURIN)),$(call stamp,RUN)) ## build the sdist and, from it, the wheel for the stable ABI; DIST=directory
	@# Files of an sdist are dated 2006: cargo would take what it compiled of other ones for fresh.
	$(CARGO) clean --quiet --release --locked $(addprefix --package worker-adapters-,core net python) \
		$(if $(TARGET),--target '$(TARGET)')
	@mkdir -p '$(dir $(SBOM))'
	$(PYTHON) .ci/sbom.py --target '$(or $(TARGET),$(HOST))' > '$(SBOM)'
	$(MATURIN) build --quiet --release --locked --features abi3 --sdist --sbom-include '$(SBOM)' \
		$(if $(TARGET),--target '$(TARGET)') --out '$(DIST)' $(DIST_ARGS)

.PHONY: reproducible
reproducible: REBUILT = $(TARGET_DIR)/reproducible
reproducible: ## build sdist and wheel twice and compare them byte by byte
	rm -rf '$(REBUILT)'
	$(MAKE) dist DIST='$(REBUILT)/first'
	$(MAKE) dist DIST='$(REBUILT)/second'
	diff --recursive --brief '$(REBUILT)/first' '$(REBUILT)/second'

.PHONY: audit
audit: $(call stamp,AUDIT) ## check licences and sources of crates and, by what the network knows, vulnerabilities; needs cargo-deny
	$(CARGO) deny --locked check bans licenses sources
	$(CARGO) deny --locked check advisories
	$(requirements) project extra:cli extra:demo > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --progress-spinner off --requirement $(VENV)/audited.txt

.PHONY: venv
venv: $(call stamp,RUN) $(call stamp,DEV) ## create the virtual environment with every dependency

.PHONY: all
all: lint test ## everything CI runs

.PHONY: clean
clean: ## remove everything the commands made
	rm -rf $(VENV) target dist mutants.out rust/core/fuzz/target rust/core/fuzz/corpus rust/core/fuzz/seeds rust/loom/target .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f python/worker_adapters/_core.*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable}: Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

define install
$(call stamp,$(1)): | $(BIN)/python
	@rm -f $(VENV)/.stamp-$(1)-*
	$(requirements) $($(1)) > $(VENV)/$(1).txt
	$(BIN)/python -m pip install --quiet --requirement $(VENV)/$(1).txt
	@touch $$@
endef
$(foreach list,RUN DEV BENCH AUDIT,$(eval $(call install,$(list))))

$(BUILT): $(call stamp,RUN) $(RUST_SOURCES)
	PIP_QUIET=1 $(BIN)/maturin develop --quiet --release --locked
	@touch $@
