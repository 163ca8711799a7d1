#!/bin/sh
# Fetch the published CIFAR-100 teachers (all, or those named) into save/models/.
set -eu
cd "$(dirname "$0")/.."
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
exec "$python" -m helper.teachers "$@"
