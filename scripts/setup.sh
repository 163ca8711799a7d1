#!/bin/sh
# Make .venv and install what requirements files ask for. Does nothing when that is done already.
#   sh scripts/setup.sh [requirements.txt ...]
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- requirements.txt

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is not there or older than Python 3.11: name another with PYTHON=..." >&2
    exit 2
fi
for file in "$@"; do
    stamp=".venv/installed-$(basename "$file")"
    wanted=$("$python" -V; cat "$file")
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
        continue
    fi
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv
    echo "installing $file into .venv (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
    printf '%s\n' "$wanted" >"$stamp"
done
