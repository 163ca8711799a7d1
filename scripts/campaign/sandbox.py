"""Commands in forks of this process, which has everything imported: a start takes milliseconds."""

import os
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from cli.main import main
from scripts.compare import compare
from tools.eval import evaluate_checkpoint
from tools.train import train
from train_student import train_student
from train_teacher import train_teacher
from transfer_student import transfer_student

COMMANDS = {
    "train_teacher": train_teacher,
    "train_student": train_student,
    "transfer_student": transfer_student,
    "eval": evaluate_checkpoint,
    "train": train,
    "compare": compare,
}
MEMORY = 3 << 30  # bytes of address space that a command may have beside those it starts with
LIMIT = 60.0  # seconds that a command may take


class Outcome(NamedTuple):
    """How a command ended."""

    code: int  # negative: the signal
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False

    def problems(self, codes: Sequence[int]) -> list[str]:
        """What is not as it should be of a command that may end with one of these exit codes."""
        found = []
        errors = [line for line in self.stderr.splitlines() if line.startswith("error:")]
        if self.timed_out:
            found.append(f"it did not end within {self.seconds:.0f} s")
        elif self.code not in codes:
            found.append(f"exit code {self.code}, not {' or '.join(map(str, codes))}")
        if "Traceback" in self.stderr:
            found.append("a traceback")
        if len(errors) != (self.code in (1, 2)) and not self.timed_out:
            found.append(f"{len(errors)} error lines")
        return found


class Child:
    """A command that runs in a process group of its own."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] = {},
        prepare: Callable[[], None] = lambda: None,
    ):
        """`prepare` is called in the new process, right before the command."""
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become(words, folder, environment, prepare)
            except BaseException:
                traceback.print_exc()
            os._exit(70)

    def send(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            os.kill(self.pid, number)  # it has no group of its own yet

    def wait(self, limit: float = LIMIT) -> Outcome:
        """Wait for its end; past the limit it is killed."""
        status, timed_out = self._status_within(limit), False
        if status is None:
            timed_out = True
            self.send(signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        seconds = time.monotonic() - self.started
        for file in self.files:
            file.seek(0)
        stdout, stderr = (file.read().decode(errors="replace") for file in self.files)
        return Outcome(os.waitstatus_to_exitcode(status), stdout, stderr, seconds, timed_out)

    def _status_within(self, limit: float) -> int | None:
        while (left := limit - (time.monotonic() - self.started)) > 0:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            time.sleep(min(left, 0.003))
        return None

    def _become(self, words, folder, environment, prepare) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        for descriptor, file in zip((1, 2), self.files):
            os.dup2(file.fileno(), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        limit_memory()
        socket.socket.connect = no_network
        sys.argv = list(words)
        prepare()
        os._exit(exit_code(COMMANDS[words[0]]))


def exit_code(command: Callable) -> int:
    """Run a command as the interpreter does -> what it would exit with."""
    code = 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        main(command)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return code


def limit_memory() -> None:
    """No more address space than MEMORY: what asks for too much is refused at once."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def no_network(*_) -> None:
    raise OSError("no network in a campaign")


def warm_up(folder: Path, words: Sequence[str]) -> None:
    """Import whatever a command imports while it runs."""
    torch.set_num_threads(1)  # threads do not outlive a fork
    listing = folder / "modules"

    def tell() -> None:
        os_exit = os._exit

        def list_modules(code: int) -> None:
            listing.write_text("\n".join(sys.modules))
            os_exit(code)

        os._exit = list_modules

    outcome = Child(words, folder, prepare=tell).wait(300)
    if outcome.code:
        raise RuntimeError(f"{' '.join(words)}: {outcome.stderr}")
    for name in listing.read_text().splitlines():
        if name not in sys.modules and name != "__mp_main__":
            try:
                __import__(name)
            except Exception:  # noqa: S112 - a part of a package that is not to be imported alone
                continue
