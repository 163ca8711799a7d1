"""Runs whose n-th file operation is their last, or fails, as do all that follow."""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from scripts.campaign.ground import RUNS, Case

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"}
REMOVALS = {"os.remove", "os.rmdir"}
FULL = (errno.ENOSPC, errno.EDQUOT)  # on a full disk files can be removed
ERRORS = (*FULL, errno.EROFS, errno.EIO, errno.EACCES)
# What a run begins with, its flag, and about how many operations it has then.
STARTS = (("empty", "", 100), ("stopped", "--resume", 70), ("finished", "--overwrite", 115))


def operate(case: Case) -> None:
    """A run in which the n-th operation on files of its folder kills it, or fails for good; it is
    resumed and then is the run that nothing befell."""
    chance = case.chance
    name, (state, flag, most) = chance.choice(list(RUNS)), chance.choice(STARTS)
    line = f"{RUNS[name]} {flag}"
    case.enter(state, name)
    mode = chance.choice(["dies", "dies", "fails", "too large"])
    at = chance.randrange(1, most)
    what, code = f"operation {at} {mode}", chance.choice(ERRORS)
    if mode == "too large":
        largest = chance.choice([20_000, 100_000, 330_000, 700_000])  # its output fits
        what, prepare = f"files above {largest:,} bytes fail", limit_size(largest)
    elif mode == "dies":
        prepare = at_operation(at, case.folder, die)
    else:
        prepare = at_operation(at, case.folder, failing(code))
        what += f" with {errno.errorcode[code]}"
    case.log.append(what)
    outcome = case.start(line, prepare=prepare).wait()
    if outcome.code == -signal.SIGKILL and not outcome.timed_out:
        case.note(outcome)
    else:
        case.judge(outcome, (0, 1, 2))
    overwrites = state == "finished" and outcome.code
    if case.run(f"{RUNS[name]} --resume", (0, 2) if overwrites else (0,)).code:
        case.run(f"{RUNS[name]} --overwrite")
    case.expect_whole(name)


def at_operation(number: int, folder: Path, act: Callable[[str], None]) -> Callable[[], None]:
    """Have `act` called before the operation of that number, and all later ones, that change a file
    below a folder."""

    def install() -> None:
        done, real, inside = 0, os.fsync, os.path.realpath(folder)

        def happen(event: str) -> None:
            nonlocal done
            done += 1
            if done >= number:
                act(event)

        def hook(event: str, arguments: tuple) -> None:
            changes = event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITES)
            if changes and isinstance(arguments[0], (str, os.PathLike)):
                path = os.path.abspath(os.fspath(arguments[0]))
                if path.startswith(inside):
                    happen(event)

        def fsync(descriptor) -> None:
            happen("fsync")
            real(descriptor)

        os.fsync = fsync
        sys.addaudithook(hook)

    return install


def die(event: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing(code: int) -> Callable[[str], None]:
    def fail(event: str) -> None:
        if code in FULL and event in REMOVALS:
            return
        raise OSError(code, os.strerror(code))

    return fail


def limit_size(largest: int) -> Callable[[], None]:
    """Let writing fail past so many bytes of a file."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
