# Every target does its own set-up on a fresh Debian or Ubuntu machine.
SHELL := bash
export VENV ?= .venv
BIN := $(VENV)/bin
ROUTER ?= frr
TIMED := .ci/timed
# Where a VM would do as well there is none of this: it has no network, and making images needs one.
SUDO = $(if $(filter 0,$(shell id -u)),,sudo VENV=$(VENV))
LOCK = $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url \
  --no-emit-find-links --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help setup lab test check test-unit test-kernel test-image test-e2e bench lock fmt clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: Debian packages, virtual environment, VM kernel
	@.ci/setup

lab: setup ## Build a cluster of three nodes here, take the guided tour (ROUTER=frr|gobgp|bird)
	@$(BIN)/kube-router-py lab --router $(ROUTER) --nodes 3 --subnets 2 --tour

test: setup ## Everything: static checks, unit tests, real kernel, packets through the lab
	@$(TIMED) "static checks" $(MAKE) --no-print-directory check-only
	@.ci/side-by-side \
	  ".ci/uml-kernel; .ci/in-kernel .ci/real-tests kernel" \
	  "$(MAKE) --no-print-directory test-here" \
	  ".ci/in-kernel .ci/real-tests e2e" \
	  ".ci/in-kernel .ci/real-tests routing loadbalancer" \
	  ".ci/in-kernel .ci/real-tests operate families" \
	  ".ci/in-kernel .ci/real-tests tour"

check: setup check-only ## Linters, types, import directions

test-unit: setup unit-only ## Pure and in-process tests; no root, no kernel

test-kernel: setup ## One contract suite, on the fakes and on the real kernel
	@.ci/uml-kernel || true
	@.ci/in-kernel .ci/real-tests netfilter frr kernel

test-image: setup ## The image's root, made without a container engine, and a lab in it
	@$(SUDO) .ci/real-tests image

test-e2e: setup ## Packets through the lab, in a VM where the host has no IPVS
	@.ci/uml-kernel || true
	@.ci/in-kernel .ci/real-tests layer2 faults e2e routing loadbalancer operate families

bench: setup ## Measured ratios, each table within one run
	@$(TIMED) "informer cache" $(BIN)/python tests/bench/bench_cache.py
	@$(TIMED) "service proxy" $(BIN)/python tests/bench/bench_proxy.py
	@$(TIMED) "addresses" $(BIN)/python tests/bench/bench_loadbalancer.py
	@$(TIMED) "firewall" $(if $(filter 0,$(shell id -u)),,sudo )$(BIN)/python tests/bench/bench_firewall.py
	@$(TIMED) "routes" $(if $(filter 0,$(shell id -u)),,sudo )$(BIN)/python tests/bench/bench_routing.py
	@$(TIMED) "IPVS" env LAB_VM=qemu .ci/in-kernel $(BIN)/python tests/bench/bench_ipvs.py

fmt: setup ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lock: setup ## Write the lock files anew from pyproject.toml: .ci's and, the same versions, the image's
	@$(BIN)/pip install -q uv
	@$(LOCK) --extra lab --group dev pyproject.toml -o .ci/requirements.lock
	@$(LOCK) --constraint .ci/requirements.lock pyproject.toml -o image/run.lock
	@$(LOCK) --constraint .ci/requirements.lock --group build -o image/build.lock

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: check-only unit-only test-here
check-only:
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

unit-only:
	@$(BIN)/pytest -q tests/unit tests/contract -m "not kernel and not netfilter and not frr and not e2e"

# Everything that needs no kernel with IPVS.
test-here:
	@code=0; \
	$(TIMED) "unit tests" $(MAKE) --no-print-directory unit-only || code=1; \
	$(SUDO) .ci/real-tests image netfilter frr layer2 faults || code=1; \
	exit $$code
