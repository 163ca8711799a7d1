"""Who may write into a folder: one process at a time, which says who it is."""

import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from helper.errors import UserError
from helper.files import read_regular, write_json

PATIENCE = 10.0  # seconds that the loading processes of a killed run may need to end


class FolderLock:
    """The lock of a folder that is there."""

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, FileLock(folder / ".lock")
        self.holder = folder / ".lock.json"  # who holds the lock; the lock itself can't say

    def acquire(self) -> None:
        """Take the lock; UserError that says who has it."""
        try:
            self.lock.acquire(timeout=PATIENCE if self._holder_is_dead() else 0)
        except Timeout:
            raise UserError(
                f"{self.folder} is being written by {self._describe_holder()}: wait for it or "
                "stop it"
            ) from None
        here = {"pid": os.getpid(), "host": platform.node(), "start": time.strftime("%F %T%z")}
        write_json(self.holder, here)

    def release(self) -> None:
        with suppress(OSError):  # the lock alone counts
            self.holder.unlink()
        self.lock.release()

    def _read_holder(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            holder = json.loads(read_regular(self.holder))
            return holder if isinstance(holder, dict) else {}
        return {}

    def _holder_is_dead(self) -> bool:
        """Whether the process that took the lock is gone from this machine."""
        holder = self._read_holder()
        if holder.get("host") != platform.node() or not isinstance(holder.get("pid"), int):
            return False
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False

    def _describe_holder(self) -> str:
        holder = self._read_holder()
        if not holder:
            return "another process"
        return "process {pid} on {host} since {start}".format(
            **{"pid": "?", "host": "?", "start": "?", **holder}
        )
