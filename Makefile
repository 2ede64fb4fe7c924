# make book | test | search | notebooks | serve | lint | clean
#
# The first run makes .venv and installs requirements.txt into it; later runs install nothing until that file or
# pyproject.toml changes. Another Python: make PYTHON=python3.12 book

PYTHON ?= python3
WORKERS ?= 2
PORT ?= 8000
BIN := .venv/bin
INSTALLED := .venv/.installed
BUILT := _build/.built
BOOK_SOURCES := _config.yml $(shell find book -type f -not -path '*/.*' -not -path '*/__pycache__/*')
RUN := runs/micro

.PHONY: help book test search notebooks serve lint clean
.DELETE_ON_ERROR:

help:
	@echo "make book       build the book into _build/html"
	@echo "make test       build the book, then run every test and every notebook"
	@echo "make search     search a cell on the embedded digits, then train it with one bit"
	@echo "make notebooks  execute every notebook again, in place"
	@echo "make serve      show the built book at http://127.0.0.1:$(PORT)"
	@echo "make lint       check the style of all Python code"
	@echo "make clean      remove the built book (.venv stays)"

$(INSTALLED): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' is not here: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1 | cut -d' ' -f2): name another with make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# From scratch every time: Sphinx does not repeat the warnings of pages it does not read again.
$(BUILT): $(INSTALLED) $(BOOK_SOURCES)
	@rm -rf _build
	$(BIN)/jupyter-book build book -W -n --keep-going --quiet
	@touch $@

book: $(BUILT)
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html, or: make serve"

test: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(WORKERS) --no-loadscope-reorder -rs

search: $(INSTALLED)
	$(BIN)/python -m dcpnas_lite search --space micro --data digits --seed 0 --out $(RUN)
	$(BIN)/python -m dcpnas_lite train $(RUN) --bits 1

notebooks: $(INSTALLED)
	$(BIN)/python tools/notebooks.py setup
	$(BIN)/python tools/notebooks.py execute

serve: $(BUILT)
	@echo "http://127.0.0.1:$(PORT)  (Ctrl-C ends it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lint: $(INSTALLED)
	$(BIN)/ruff check .

clean:
	rm -rf _build
