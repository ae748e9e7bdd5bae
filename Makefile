# Needs Python >= 3.11, make and git. The first target that is called makes a virtual environment in .venv and installs
# the project there at the versions of constraints.txt; afterwards that takes no time.
#   make demo                align the shipped few-step model on the CPU and show before | after
#   make test                format, lint, unit tests, and every notebook re-run and compared with what is committed
#   make unit                the unit tests alone, without those that are marked slow: what to run while writing code
#   make long                the tests that make test leaves out: every table under two processes and under kills,
#                            every full-size plan (about half an hour on two cores)
#   make browser             move the notebooks' controls in JupyterLab in a headless Chromium and see the pictures
#                            change; draw in the playground; screenshots go to build/browser (some minutes)
#   make playground          the page that draws in the browser, into build/playground/site/playground: trains its small
#                            students (some minutes of one core, once for the weights that ship) and exports all to
#                            ONNX; needs Node's npm
#   make notebooks           re-execute all notebooks in place (then read the diff, and commit)
#   make seeds               every notebook at three other seeds, and each cell that fails there (about half an hour);
#                            ARGS="05 07 --seeds 11 12 13" says which notebooks and seeds
#   make pages               decide the claims of all committed results again, and write their pages and READMEs
#   make ledger              run every table of the pocket world that is not yet run, and say what each took and what is
#                            missing; ARGS=--status runs nothing
#   make docs                the site, in build/site: notebooks, tables, errata, API (some minutes); then its links are
#                            checked. Serve it by: python -m http.server -d build/site
#   make format              let ruff format and fix
#   make image-reward        the rewards' own packages, without what they ask for (CONTRIBUTING.md says why); the tests
#                            compare with them, so make test and make unit begin with it
#   make clean               remove .venv and the caches (not build/ and runs/: they hold hours of training)
# ARGS="..." is passed on to the demo, or to pytest: make test ARGS="-k kernels". The tests run in two processes of one
# thread each (two of two threads on two cores are far slower); with more cores: make test ARGS="-n 8".
# A CPU-only torch on Linux: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3.11 python3 python
VENV ?= .venv
ARGS ?=
python := $(VENV)/bin/python
installed := $(VENV)/.fsalign-installed
originals := $(VENV)/.originals-installed
sphinx := $(VENV)/.sphinx-installed
playground := build/playground/site/playground/data/constants.json
tables := $(basename $(notdir $(wildcard reproduce/results/*_*.md)))
notebooks := $(sort $(wildcard notebooks/*.ipynb))

.PHONY: demo test unit long browser playground docs lint format pages ledger notebooks seeds image-reward clean
.DELETE_ON_ERROR:

demo: $(installed)
	$(python) reproduce/demo.py $(ARGS)

test: lint image-reward
	OMP_NUM_THREADS=1 $(python) -m pytest tests notebooks -n 2 --dist loadfile --nbval --nbval-current-env \
	  --nbval-cell-timeout=300 --nbval-sanitize-with=tests/nbval.cfg -m "not long and not browser and not site" $(ARGS)

unit: $(installed) image-reward
	OMP_NUM_THREADS=1 $(python) -m pytest tests -n 2 --dist loadfile -m "not slow and not long and not browser and not site" $(ARGS)

long: $(installed)
	OMP_NUM_THREADS=1 $(python) -m pytest tests -n 2 -m long $(ARGS)

# The Chromium of the PATH (Debian: apt install chromium), or else one that playwright fetches.
browser: $(installed)
	$(python) -m pip install --disable-pip-version-check --quiet -c constraints.txt playwright
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	  || $(python) -m playwright install chromium \
	  || { echo "install Chromium so that it is on the PATH (Debian: apt install chromium)" >&2; exit 1; }
	@if command -v npm > /dev/null; then $(MAKE) playground; else echo "no npm: without the playground's tests"; fi
	OMP_NUM_THREADS=1 $(python) -m pytest tests/test_browser.py tests/test_playground.py -m browser $(ARGS)

# Built and not committed: some 50 MB that follow from the shipped weights, and would be stale with the next ones.
playground: $(playground)

$(playground): $(wildcard docs/playground/*) $(wildcard fsalign_lib/pocket/weights/*/*) | $(installed)
	@command -v npm > /dev/null || { echo "no npm: install Node 18 or newer, which brings it" >&2; exit 1; }
	$(python) -m pip install --disable-pip-version-check --quiet -c constraints.txt onnx onnxscript
	@mkdir -p build/playground/npm && cp docs/playground/package*.json build/playground/npm
	cd build/playground/npm && npm ci --ignore-scripts --no-audit --no-fund
	PYTHONPATH=. OMP_NUM_THREADS=1 $(python) docs/playground/export.py --npm build/playground/npm \
	  --out build/playground/site/playground

# The tree that Sphinx reads is laid out in build/docs by docs/tree.py.
docs: $(sphinx)
	@if command -v npm > /dev/null; then $(MAKE) playground; else echo "no npm: no playground is built for the site"; fi
	@mkdir -p build/docs
	$(python) -m sphinx -q -W --keep-going -d build/doctrees -c docs build/docs build/site
	$(python) -m pytest tests/test_site.py -m site $(ARGS)

$(sphinx): $(installed)
	$(python) -m pip install --disable-pip-version-check --quiet -c constraints.txt sphinx myst-nb furo \
	  sphinx-copybutton sphinx-mathjax-offline
	@touch $@

lint: $(installed)
	$(python) -m ruff format --check .
	$(python) -m ruff check .

format: $(installed)
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

# Twice: the statuses of one page depend on the results of all tables of its paper.
pages: $(installed)
	@for table in $(tables) $(tables); do $(python) reproduce/$$table.py --table-only || exit 1; done

ledger: $(installed)
	$(python) reproduce/ledger.py $(ARGS)

notebooks: $(installed)
	@for notebook in $(notebooks); do \
	  $(python) -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
	    --ExecutePreprocessor.timeout=120 "$$notebook" || exit 1; \
	done

seeds: $(installed)
	OMP_NUM_THREADS=1 $(python) tests/seeds.py $(ARGS)

image-reward: $(originals)

$(originals): $(installed)
	$(python) -m pip install --disable-pip-version-check --quiet --no-deps -c constraints.txt image-reward \
	  open_clip_torch hpsv2
	@touch $@

# The first of PYTHON that is new enough and can make environments (Debian packages venv apart from Python).
$(installed): pyproject.toml constraints.txt
	@for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec "$$candidate" -m venv $(VENV); \
	  fi; \
	done; \
	echo "none of '$(PYTHON)' is Python >= 3.11 with venv: install one (Debian: apt install python3.11-venv)," \
	  "or name one: make PYTHON=/path/to/python3.11" >&2; \
	exit 1
	@echo "installing into $(VENV): some minutes, the first time"
	$(python) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[notebooks,test,tensorboard,data]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
