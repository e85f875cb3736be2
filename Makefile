# One command per task; `make help` lists them. What CI runs is what a person runs.
PYTHON ?= python3.11
STATE  ?= build/state
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-interop test-cluster tensorflow minio images lint contracts proto-check bench bench-cluster lock clean

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## install everything into .venv folders of this checkout (first time: about 1 GB of downloads)
	@$(PYTHON) scripts/environments.py setup

demo: setup ## watch a real model travel from a file onto virtual microcontrollers
	@TINYMLAAS_STATE_DIR=$(STATE) $(BIN)/tinymlaas demo --output build/demo.json

test: setup ## run every test: unit, contract over loopback, end to end with virtual boards
	@$(BIN)/python scripts/run_tests.py

test-fast: setup ## the same without the slow ones
	@$(BIN)/python scripts/run_tests.py --fast

test-interop: setup ## LwM2M against Eclipse Leshan, both ways, and the DTLS front (needs a JDK 17, Maven and Go; says so where they are missing)
	@if command -v go >/dev/null; then cd services/dtls-front && go test ./...; else echo "tests of the DTLS front are skipped: Go is missing"; fi
	@TINYMLAAS_INTEROP=1 $(BIN)/python -m pytest tests/interop -rs

MINIO := v0.0.0-20260212201848-7aac2a2c5b7c
minio: ## build a MinIO server into build/tools/bin, for the tests of the S3 store (needs Go; some minutes)
	GOBIN=$(CURDIR)/build/tools/bin go install github.com/minio/minio@$(MINIO)

HELM := v4.3.1
KUBECONFORM := v0.8.0
.PHONY: chart-tools
chart-tools: ## build helm and kubeconform into build/tools/bin, for the tests of the chart (needs Go; some minutes)
	GOBIN=$(CURDIR)/build/tools/bin go install helm.sh/helm/v4/cmd/helm@$(HELM)
	GOBIN=$(CURDIR)/build/tools/bin go install github.com/yannh/kubeconform/cmd/kubeconform@$(KUBECONFORM)

tensorflow: setup ## add TensorFlow (about 600 MB): the importer of Keras and SavedModel, and its tests
	build/tools/bin/uv pip install --quiet --python services/compiler-tflm/.venv/bin/python --require-hashes \
	  -r services/compiler-tflm/requirements-tensorflow.lock

lint: setup ## style, types, and whether generated code is up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python scripts/check_types.py
	@$(BIN)/python scripts/generate_contracts.py --check

contracts: setup ## generate packages/contracts from protos/
	@$(BIN)/python scripts/generate_contracts.py

proto-check: setup ## buf lint, and buf breaking against the contracts of the commit before (needs npm)
	@$(BIN)/python scripts/check_protos.py

images: ## build the container images of deploy/images (needs docker or buildah)
	@$(PYTHON) scripts/build_images.py build

test-cluster: setup ## install the chart on a cluster (KUBECONFIG, or the kit that CLUSTER_KIT names) and do it harm
	@TINYMLAAS_CLUSTER=1 $(BIN)/python -m pytest tests/cluster -vv -s -rs --timeout 3600

.PHONY: cluster-kit
cluster-kit: setup ## build the kit's cluster for the two below, where that was not done yet
	@PYTHONPATH=scripts:tests/cluster $(BIN)/python -c \
	  "import cluster_kit as c; kit = c.usable_kit(); print(kit) if isinstance(kit, str) else c.build(kit)"

.PHONY: test-cluster-fast
test-cluster-fast: setup ## the same for a quarter of the time: install, upgrade under a rollout, helm test, boards as pods
	@TINYMLAAS_CLUSTER=1 $(BIN)/python -m pytest tests/cluster/test_cluster.py \
	  -vv -s -rs --timeout 3600 -k "upgrade or own_test or are_pods"

bench-cluster: setup ## the same with 50 builds and a 100-device rollout; writes bench/results/cluster.json
	@TINYMLAAS_CLUSTER=1 $(BIN)/python -m bench.cluster

bench: setup ## measure and print the tables of docs/benchmarks.md
	@$(BIN)/python -m bench

.PHONY: bench-lwm2m fuzz
bench-lwm2m: setup ## 10,000 simulated LwM2M devices and a rollout over a bad link, beside Eclipse Leshan where Java is (some minutes)
	@$(BIN)/python -m bench.lwm2m

fuzz: setup ## a million hostile inputs for the decoders of the LwM2M interface
	@$(BIN)/python -m bench.lwm2m fuzz

lock: ## resolve all packages again and write the lock files
	@$(PYTHON) scripts/environments.py lock
	@$(PYTHON) scripts/build_images.py lock

clean: ## remove what was built (environments stay; `make clean-all` removes them too)
	rm -rf build/state build/demo.json build/protos

.PHONY: clean-all
clean-all: clean ## remove everything that is not in git
	rm -rf build .venv services/*/.venv
