# Each target sets up what it needs (setup.sh) and then runs in the virtual environment.
# On the command line:  make demo VENV=/elsewhere/env   make demo VENV=none (setup.sh says what that is)
# The tests on another Python, beside .venv:  make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?=
VENV ?= .venv
export PYTHON VENV
RUN = $(if $(filter none,$(VENV)),$(or $(PYTHON),python3),"$(VENV)/bin/python")

.PHONY: help demo test lint bench gpu-check gpu-bench faults clean

help:
	@echo "make demo    set up, write the bundled photographs, train on them, report (4 minutes on 2 cores, once set up)"
	@echo "make test    set up, run the tests"
	@echo "make lint    set up, check the style"
	@echo "make bench   set up, measure the loader and the training step beside others (20 minutes on 2 cores)"
	@echo "make gpu-check  does a GPU compute what the CPU does? (5 minutes)"
	@echo "make gpu-bench  measure the training step on a GPU (10 minutes)"
	@echo "make faults  set up, inject faults and see what becomes of them (15 minutes on 2 cores)"
	@echo "make clean   remove the virtual environment and caches; data/ and runs/ stay"

demo:
	@./setup.sh
	$(RUN) write_datasets.py
	$(RUN) train_imagenet.py --cfg recipes/demo.yaml
	@$(RUN) -m tools.baseline data/photos_train.beton data/photos_val.beton --log runs/demo/log.jsonl

test:
	@./setup.sh dev
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint:
	@./setup.sh dev
	$(RUN) -m ruff check .

bench:
	@./setup.sh dali
	$(RUN) -m bench.loader --json bench/results/loader.json --plot docs/loader.png --markdown docs/performance.md
	$(RUN) -m bench.write --json bench/results/write.json
	$(RUN) -m bench.step --json bench/results/step.json --markdown docs/performance.md

gpu-check:
	@./setup.sh
	$(RUN) write_datasets.py
	$(RUN) -m bench.gpu check --markdown docs/performance.md

gpu-bench:
	@./setup.sh
	$(RUN) -m bench.gpu bench --markdown docs/performance.md
	$(RUN) -m bench.step --table --markdown docs/performance.md

faults:
	@./setup.sh
	$(RUN) -m bench.faults --json bench/results/faults.json --markdown docs/reliability.md

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
