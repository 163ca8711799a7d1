"""A run's process: its session, its log, its end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps import child

ROOT = Path(__file__).resolve().parent.parent.parent


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def waited(true, seconds=20.0):
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


def test_a_command_has_a_session_a_folder_and_a_log(tmp_path):
    code = "import os, sys; print(os.getsid(0) == os.getpid(), os.getcwd()); sys.exit(3)"
    log = tmp_path / "log"
    log.write_text("before\n")
    ended = child.run_child([sys.executable, "-c", code], str(tmp_path), str(log), 2)
    lines = log.read_text().splitlines()
    assert (ended, lines[0], lines[-1]) == (3, "before", f"True {tmp_path}")
    assert lines[1].startswith("---- 20")


SLEEPS = """
import subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
open("pids", "w").write(f"{__import__('os').getpid()} {other.pid}")
time.sleep(99)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("signal", [2, 9])
def test_it_ends_with_its_worker(tmp_path, signal):
    """Interrupted, the worker ends all of the session; killed, it takes the process with it."""
    code = "import sys; from sweeps.child import run_child; run_child(*eval(sys.argv[1]))"
    arguments = ([sys.executable, "-c", SLEEPS], str(tmp_path), str(tmp_path / "log"), 1)
    worker = subprocess.Popen(
        [sys.executable, "-c", code, repr(arguments)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    pids = tmp_path / "pids"
    assert waited(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    run, other = map(int, pids.read_text().split())
    try:
        worker.send_signal(signal)
        worker.wait()
        assert waited(lambda: not alive(run))
        if signal == 2:
            assert waited(lambda: not alive(other))
    finally:
        if alive(other):
            os.kill(other, 9)
