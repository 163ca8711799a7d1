#!/bin/sh
# Download Tiny ImageNet (250 MB) and arrange it as data/tiny-imagenet-200/train/<class>/ and
# val/<class>/, beside this script. --from FILE_OR_FOLDER takes what is there already, --to DIR puts
# it elsewhere; --help has the rest.
set -eu
root=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
python=python3
[ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
if ! command -v "$python" >/dev/null; then
    echo "error: $python is not there: install Python 3" >&2
    exit 2
fi
exec "$python" "$root/scripts/get_tinyimagenet.py" "$@"
