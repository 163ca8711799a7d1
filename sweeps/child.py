"""A command as a process of its own session with its own log: what a worker of a sweep does.

It is sent to workers as it is, so it imports nothing of this project.
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

GRACE = 10.0  # seconds between the request to end and the end
LOOK = 0.1  # seconds between two looks at a process
# Before it becomes the command, the process asks to be killed with its worker, which may be killed
# at any time, and takes every signal again, some of which workers block.
LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the worker was killed")
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(sys.argv[2], sys.argv[2:])
"""


def run_child(command: Sequence[str], folder: str, log: str, cores: int) -> int:
    """Run a command, whose first word is a Python, in a folder -> its exit code.

    What it prints is added to a log. Where this function is interrupted, it ends the process and
    all that the process started.
    """
    words = [command[0], "-c", LAUNCH, str(os.getpid()), *command]
    with open(log, "ab") as file:
        file.write(f"---- {time.strftime('%F %T')} {' '.join(command)}\n".encode())
        file.flush()
        child = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": str(cores)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while child.poll() is None:  # waiting itself cannot be interrupted by Ray
            time.sleep(LOOK)
        return child.returncode
    finally:
        end(child)


def end(child: subprocess.Popen) -> None:
    """End a process, if it still runs, and what is left of its session."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while child.poll() is None and time.monotonic() < until:
            time.sleep(LOOK)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
