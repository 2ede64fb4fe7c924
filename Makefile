# make book | pdf | test | test-lowest | test-newest | search | notebooks | wheel | student | serve | lint | clean
#
# The first run makes .venv and installs requirements.txt into it; later runs install nothing until that file,
# requirements-tests.txt or pyproject.toml changes. Another Python: make PYTHON=python3.12 book

PYTHON ?= python3
PYTHON_LOWEST ?= python3.11
PYTHON_NEWEST ?= python3.13
WORKERS ?= 2
PORT ?= 8000
BIN := .venv/bin
INSTALLED := .venv/.installed
BUILT := _build/.built
BOOK_SOURCES := _config.yml READING.md $(shell find book -type f -not -path '*/.*' -not -path '*/__pycache__/*') $(shell find dcpnas_lite -name '*.py')
RUN := runs/micro

# Of thousands of library files only those that are imported are compiled, once, where the environment forbids it, too.
export PYTHONDONTWRITEBYTECODE :=

TESTS := pytest tests -n $(WORKERS) --no-loadscope-reorder -rs

.PHONY: help book pdf test test-lowest test-newest search notebooks wheel student serve lint clean
.DELETE_ON_ERROR:

help:
	@echo "make book         build the book into _build/html"
	@echo "make pdf          print the book into _build/book.pdf (needs Chromium)"
	@echo "make test         build the book, then run every test and every notebook"
	@echo "make test-lowest  tests and notebooks, without the built book, with the oldest libraries pyproject.toml allows"
	@echo "make test-newest  the same with the newest; both make a virtual environment of their own"
	@echo "make search       search a cell on the embedded digits, then train it three times with one bit"
	@echo "make notebooks    execute every notebook again, in place"
	@echo "make wheel        build the package into dist/, to be put beside a notebook"
	@echo "make student      copies of the notebooks without solutions, and the package, in dist/student"
	@echo "make serve        show the built book at http://127.0.0.1:$(PORT)"
	@echo "make lint         check the types of the package and the style of all Python code"
	@echo "make clean        remove the built book (virtual environments stay)"
	@echo
	@echo "One notebook      $(BIN)/python tools/notebooks.py execute book/06-from-trace-to-update.ipynb"
	@echo "and its tests     $(BIN)/python -m pytest tests/test_notebooks.py tests/test_exercises.py -k 06-from"

# $(call environment,FOLDER,VARIABLE): a virtual environment of the Python that the variable names.
define environment
@command -v $($(2)) >/dev/null || { echo "'$($(2))' is not here: install Python 3.11 or newer, or name it: make $(2)=/path/to/python3 ..." >&2; exit 1; }
@$($(2)) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $($(2)) is $$($($(2)) -V 2>&1 | cut -d' ' -f2): name another with make $(2)=/path/to/python3 ..." >&2; exit 1; }
@$($(2)) -c 'import venv, ensurepip' 2>/dev/null || { echo "$($(2)) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
@test -x $(1)/bin/python || $($(2)) -m venv $(1)
endef

$(INSTALLED): requirements.txt requirements-tests.txt pyproject.toml
	$(call environment,.venv,PYTHON)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation -e .
	@touch $@

# From scratch every time: Sphinx does not repeat the warnings of pages it does not read again.
$(BUILT): $(INSTALLED) $(BOOK_SOURCES)
	@rm -rf _build
	$(BIN)/jupyter-book build book -W -n --keep-going --quiet
	@touch $@

book: $(BUILT)
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html, or: make serve"

test: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m $(TESTS)

# $(call range,FOLDER,pip's options): the package with the libraries that pip then chooses, shown and tested.
define range
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-tests.txt -e . $(2)
@$(1)/bin/python -c 'import sys, importlib.metadata as m; print("Python " + sys.version.split()[0], *(n + " " + m.version(n) for n in (r.split(">")[0] for r in m.requires("dcpnas-lite"))), sep=", ")'
OMP_NUM_THREADS=1 $(1)/bin/python -m $(TESTS) --ignore=tests/test_book.py --ignore=tests/test_reference.py
endef

test-lowest:
	$(call environment,.venv-lowest,PYTHON_LOWEST)
	@.venv-lowest/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' | sed 's/>=/==/' > .venv-lowest/floors.txt
	$(call range,.venv-lowest,-c .venv-lowest/floors.txt)

test-newest:
	$(call environment,.venv-newest,PYTHON_NEWEST)
	$(call range,.venv-newest,--upgrade --upgrade-strategy eager)

search: $(INSTALLED)
	$(BIN)/python -m dcpnas_lite search --space micro --data digits --seed 0 --out $(RUN)
	$(BIN)/python -m dcpnas_lite train $(RUN) --bits 1 --seeds 3 --epochs 12 --batch 64

notebooks: $(INSTALLED)
	$(BIN)/python tools/notebooks.py setup
	$(BIN)/python tools/notebooks.py execute

wheel: $(INSTALLED)
	@rm -rf dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	@echo "The wheel is built: put $$(ls dist/*.whl) beside the notebook and run its first cell"

student: wheel
	@$(BIN)/python tools/student.py dist/student --wheel dist/*.whl

pdf: $(BUILT)
	$(BIN)/python tools/pdf.py _build/book.pdf

serve: $(BUILT)
	@echo "http://127.0.0.1:$(PORT)  (Ctrl-C ends it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lint: $(INSTALLED)
	$(BIN)/mypy
	$(BIN)/ruff check .

clean:
	rm -rf _build
