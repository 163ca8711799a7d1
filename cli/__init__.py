"""The command lines. Importing this package first finds out whether anything here can run."""

import importlib.util
import os
import sys

NEEDED = ("torch", "numpy", "yaml", "tqdm", "filelock")


def complain(problem):
    sys.stderr.write("error: %s\n" % problem)  # noqa: UP031 - old Pythons read this file too
    sys.exit(2)


def stop_quietly(kind, error, traceback):
    """Ctrl-C while modules are imported: one line."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("stopped\n")
    else:
        sys.__excepthook__(kind, error, traceback)


def open_missing_streams():
    """Where a standard stream is closed, take its place: else a file of the run would have it."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            setattr(sys, name, open(os.devnull, "w" if descriptor else "r"))  # noqa: SIM115


if sys.version_info < (3, 11):  # noqa: UP036 - an older one has to hear of it
    complain(
        "this is Python %d.%d and 3.11 or newer is needed: run `sh scripts/setup.sh` with a newer "  # noqa: UP031
        "one (PYTHON=python3.12 sh scripts/setup.sh), then .venv/bin/python" % sys.version_info[:2]
    )
open_missing_streams()
try:
    os.getcwd()
except OSError:
    complain("the folder that this was started in is gone: change to one that is there")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    complain(
        "this Python lacks "
        + ", ".join(missing)
        + ": run `sh scripts/setup.sh`, then use .venv/bin/python, or `. .venv/bin/activate` first"
    )
sys.excepthook = stop_quietly
