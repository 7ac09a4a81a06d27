# make demo   from a bare checkout to ranked answers over HTTP, on a synthetic marketplace
# make serve  the same, and the service keeps running
# make test   from a bare checkout to a green suite
# make update the stages that new listings need, with the flags that they had: from cron, beside a serving API
# make test-cluster  --ray on two machines, which are namespaces of this one, as root on Linux; elsewhere on two nodes of one;
#                    and --vectors on a Milvus server in a namespace, as root on Linux
# make check-deploy  the operator's files with DVC, promtool, nginx, systemd and buildah, as root on Debian
# make docs   the tables of README.md and docs/, and docs/cli.md, from code and benchmarks/results/
# make setup  only the virtual environment that all of them use

PYTHON ?= python3
LISTINGS ?= 390
DATA ?= data/demo$(if $(filter-out 390,$(LISTINGS)),-$(LISTINGS))
PORT ?= 8080
WEIGHTS ?= imagenet
# From scratch, 64-pixel photos keep ResNet-50 to minutes on two cores.
TRAIN_FLAGS ?= $(if $(filter none,$(WEIGHTS)),--image-size 64 --epochs 14)

PY := .venv/bin/python
REQUIREMENTS := requirements.txt requirements-dev.txt constraints.txt
DIGEST := $(shell cat $(REQUIREMENTS) | cksum | cut -d ' ' -f 1)
READY := .venv/.ready-$(DIGEST)

.PHONY: setup test test-cluster check-deploy demo serve update docs pipeline curl
setup: $(READY)

$(READY): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@rm -f .venv/.ready-* && touch $@

# Each file's tests stay together, as they share what they set up. More processes than four take more memory than time.
test: setup
	OMP_WAIT_POLICY=passive $(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile

test-cluster: setup
	$(PY) -m pip install --quiet -r requirements-test-cluster.txt -c constraints.txt
# Once more what fails: on a busy machine a node may begin after the others have done all that there was to do.
	$(PY) -m pytest tests_cluster || $(PY) -m pytest tests_cluster --last-failed --last-failed-no-failures none

check-deploy: setup
	PYTHON=$(PY) deploy/check.sh

docs: setup
	$(PY) docs/render.py

curl:
	@command -v curl >/dev/null || { echo "make demo asks the service with curl: install it first" >&2; exit 1; }

pipeline: setup
	$(PY) -m demo.sample --out $(DATA)/raw --listings $(LISTINGS)
	$(PY) clean_tabular_data.py --data $(DATA)
	$(PY) clean_images.py --data $(DATA)
	$(PY) dataset.py --data $(DATA)
# A thread of torch that waits must not spin: the photos' decoders, and others, need its core.
	@backbone=$(BACKBONE); \
	if [ -z "$$backbone" ]; then \
	  backbone=resnet50; \
	  [ "$(WEIGHTS)" != imagenet ] || answer=$$($(PY) train.py --check-weights 2>&1) || { \
	    case "$$answer" in *"cannot be downloaded"*) backbone=efficientnet_lite0 ;; *) echo "$$answer" >&2; exit 1 ;; esac; \
	    echo "ResNet-50's ImageNet weights are not cached and cannot be downloaded here: the demo runs on efficientnet_lite0."; }; \
	fi; \
	set -x; OMP_WAIT_POLICY=passive $(PY) train.py --data $(DATA) --backbone $$backbone --weights $(WEIGHTS) $(TRAIN_FLAGS)
	$(PY) extract_embeddings.py --data $(DATA)
	$(PY) build_index.py --data $(DATA)

demo: curl pipeline
	@PYTHON=$(PY) DATA=$(DATA) PORT=$(PORT) bash demo/answer.sh

update: setup
	@OMP_WAIT_POLICY=passive $(PY) update.py --data $(DATA) $(UPDATE_FLAGS)

serve: pipeline
	$(PY) api.py --data $(DATA) --port $(PORT)
