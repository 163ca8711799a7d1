# For scripts that run many trainings, which source this file from the repository's root.
#
# train SCRIPT FLAGS... runs one training: it goes on where it was stopped and is skipped when it is
# finished. DRY_RUN=1 prints the commands instead. A training that fails does not stop the others;
# `finish` says how many did.

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
failed=0

train() {
    set -- "$PYTHON" "$@" --resume
    echo "$*"
    if [ "${DRY_RUN:-0}" != 1 ]; then
        "$@" || { failed=$((failed + 1)); echo "failed: $*" >&2; }
    fi
}

finish() {
    if [ "$failed" -gt 0 ]; then
        echo "$failed of the trainings failed: see above" >&2
        exit 1
    fi
}
