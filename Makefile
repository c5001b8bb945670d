.DEFAULT_GOAL := help
SHELL := /bin/bash
CODE := builder providers templates playbooks tools pyproject.toml requirements scripts Makefile examples

.PHONY: help setup image check tools lane-image test prove bench lock docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Install what is missing: packages, Python environment, Go (does nothing twice)
	@scripts/setup.sh dev

image: setup ## Build a Kubernetes node image (debian-12, v1.34.3, qemu) into out/
	@scripts/image.sh

check: setup ## Quick lane: format, lint, types, shell scripts, unit tests
	@scripts/lane.sh check . -- scripts/check.sh

tools: setup ## Lane with the real tools: packer validate, ansible-lint, mmdebstrap, disks
	@scripts/lane.sh tools $(CODE) tests/tools -- scripts/tools.sh

lane-image: setup ## Lane with a real build, the boot of its result and kubeadm init on it
	@scripts/lane.sh image $(CODE) tests/image -- scripts/proof.sh

test: check tools lane-image ## All lanes: what CI runs

prove: setup ## kubeadm init on an image: make prove IMAGE=FOLDER (default out/)
	@BUILD_IMAGE_TEST_IMAGE=$(or $(IMAGE),out) .venv/bin/python -m pytest tests/image/test_kubeadm.py -v

bench: setup ## Ratios for docs/performance.md
	@.venv/bin/python tests/bench/bench.py

docs: setup ## Write the generated parts of the docs
	@.venv/bin/python scripts/reference.py

lock: ## Renew the hash-checked pins from pyproject.toml
	@scripts/lock.sh

clean: ## Remove what builds and tests left in this checkout (caches stay)
	rm -rf .build out dist
