#!/bin/sh
# Download Tiny ImageNet (250 MB) and arrange it as data/tiny-imagenet-200/train/<class>/ and
# val/<class>/, beside this script. --from FILE_OR_FOLDER takes what is there already, --to DIR puts
# it elsewhere; --help has the rest.
set -eu
root=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
if ! "$python" -c 'from importlib.util import find_spec as f; exit(not f("torchvision"))' 2>/dev/null; then
    echo "error: $python is not there or lacks torchvision: run sh scripts/setup.sh first" >&2
    exit 2
fi
exec "$python" "$root/scripts/get_tinyimagenet.py" "$@"
