#!/bin/sh
# Set up, then check everything: format, lint, import contracts, generated docs, tests. Arguments go
# to pytest.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh requirements.txt requirements-report.txt requirements-export.txt requirements-dev.txt
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/lint-imports --no-logo --no-cache
.venv/bin/python scripts/docs.py --check
.venv/bin/python -m pytest -n auto "$@"
