"""Where numbers come from: code, versions, machine, command line."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

CODE = Path(__file__).resolve().parent.parent  # the folder that this code was loaded from


def provenance(device: str, rounding: dict[str, Any], processes: int) -> dict[str, Any]:
    """What is known when a process starts, or goes on with, a run."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "code": str(CODE),
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "device": device,
        "machine": platform.platform(),
        "host": platform.node(),
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "options": rounding,
    }


def git_commit() -> str | None:
    """The commit of this toolkit, '+' behind it when files differ from it; None outside git."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(CODE), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != CODE:
            return None  # the code lies inside somebody else's repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
