"""Where numbers come from: code, versions, machine, command line."""

import os
import platform
import sys
import time
from typing import Any

import torch

from runs.code import CODE, changed_files, git


def provenance(
    device: str, gpu: str | None, rounding: dict[str, Any], processes: int
) -> dict[str, Any]:
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
        "gpu": gpu,
        "machine": platform.platform(),
        "host": platform.node(),
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "options": rounding,
    }


def git_commit() -> str | None:
    """The commit of this toolkit, '+' behind it when files differ from it; None outside git."""
    commit = git("rev-parse", "HEAD").strip()
    return commit + ("+" if changed_files() else "") if commit else None
