#!/bin/sh
# Fetch the published CIFAR-100 teachers (all, or those named) into save/models/. DISTILL_MIRROR names
# a source to try first: an http(s) or file URL, or a folder, with <name>_vanilla/ckpt_epoch_240.pth
# or cifar_teachers.tar.
#   sh scripts/fetch_pretrained_teachers.sh [names]
set -eu
case ${DISTILL_MIRROR:-} in
    '' | /* | *:*) ;;
    *) export DISTILL_MIRROR="$PWD/$DISTILL_MIRROR" ;; # seen from where this was called
esac
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
if ! "$python" -c 'from importlib.util import find_spec as f; exit(not (f("pooch") and f("filelock")))' 2>/dev/null; then
    echo "error: $python is not there or lacks pooch or filelock: run sh scripts/setup.sh first" >&2
    exit 2
fi
exec "$python" -m helper.teachers "$@"
