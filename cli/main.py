"""How a command runs: what it prints when it fails, and its exit code."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dataset.stream import is_loss_of_a_reader
from engine import distributed
from helper.errors import UserError, one_line

ON = "--resume goes on after the last whole epoch"
LACKING = "too little memory"


def main(command: Callable[[Sequence[str]], Any], on: str = ON) -> None:
    """Run a command on this process's arguments. Bad input: one line on stderr and exit code 2;
    what the machine refuses: one line and 1. Any other exception is a fault of the code.

    `on` says how to go on after what stopped the command.
    """
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            distributed.check_environment()
            with distributed.process_group():
                print_any_name(sys.stdout)
                command(sys.argv[1:])
                sys.stdout.flush()
        except BaseException as error:
            code, line = ending(error, on)
            if code is None:
                raise
            alone = isinstance(error, distributed.NotJoined)
            if line and (alone or distributed.reports_errors()):
                print(one_line(line), file=sys.stderr)
            drop_output()
            raise SystemExit(code) from None


def ending(error: BaseException, on: str) -> tuple[int | None, str]:
    """Exit code after an exception, None where there is none, and the line that tells of it."""
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
        return 1, ""
    if distributed.is_loss_of_a_process(error):
        return 1, f"error: a process of this run ended ({distributed.cause(error)}); {on}"
    if is_loss_of_a_reader(error):
        killed = "a process that reads images was killed: free memory, or give fewer --num_workers"
        return 1, f"error: {killed}; {on}"
    if is_lack_of_memory(error):
        return 1, f"error: {lacking(error)}; {on}"
    if interrupted(error):
        return 130, f"stopped; {on}"
    if isinstance(error, OSError):
        return 1, f"error: {what_failed(error)}; once that is mended {on}"
    return None, ""


def print_any_name(stream) -> None:
    """Escape what a stream cannot encode: names are of any characters, even of any bytes."""
    if stream.errors == "strict" or not stream.encoding.startswith("utf"):
        stream.reconfigure(errors="backslashreplace")


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of an exception: a writer that it stops may raise its own."""
    return isinstance(error, KeyboardInterrupt) or (
        error is not None and interrupted(error.__context__)
    )


def what_failed(error: OSError) -> str:
    """What the machine refused, and of which file."""
    place = error.filename or "reading or writing"
    return f"{place}: {error.strerror or error}"


def drop_output() -> None:
    """Forget what is not printed yet where it cannot be printed: else it fails again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the machine, or its GPU, has too little memory."""
    said = ("can't allocate memory", "std::bad_alloc")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def lacking(error: BaseException) -> str:
    """What did not fit, in one line."""
    size = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
    what = f" for another {size[1]}" if size else ""
    return f"{LACKING}{what}: give smaller sizes or a smaller --batch_size"


def show_warning(message, *_, **__) -> None:
    if distributed.is_main_process():
        print(f"warning: {one_line(message)}", file=sys.stderr)
