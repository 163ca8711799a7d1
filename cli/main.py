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
from helper.errors import UserError

ON = "--resume goes on after the last whole epoch"
KILLED = (
    f"error: a process that reads images was killed: free memory, or give fewer --num_workers; {ON}"
)


def main(command: Callable[[Sequence[str]], Any]) -> None:
    """Run a command on this process's arguments. Bad input: one line on stderr and exit code 2."""
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            distributed.check_environment()
            with distributed.process_group():
                print_any_name(sys.stdout)
                command(sys.argv[1:])
                sys.stdout.flush()
        except UserError as error:
            if distributed.reports_errors():
                print(f"error: {one_line(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except BrokenPipeError:  # whoever read the output has seen enough
            drop_output()
            raise SystemExit(1) from None
        except BaseException as error:
            if distributed.is_loss_of_a_process(error):
                if distributed.reports_errors():
                    lost = f"error: a process of this run ended ({distributed.cause(error)}); {ON}"
                    print(one_line(lost), file=sys.stderr)
                raise SystemExit(1) from None
            if is_loss_of_a_reader(error):
                print(KILLED, file=sys.stderr)
                raise SystemExit(1) from None
            if is_lack_of_memory(error):
                print(f"error: {lacking(error)}; {ON}", file=sys.stderr)
                raise SystemExit(1) from None
            if interrupted(error):
                print(f"stopped; {ON}", file=sys.stderr)
                raise SystemExit(130) from None
            if isinstance(error, OSError):
                if distributed.reports_errors():
                    print(f"error: {what_failed(error)}", file=sys.stderr)
                drop_output()
                raise SystemExit(1) from None
            raise


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
    what = one_line(f"{error.filename or 'reading or writing'}: {error.strerror or error}")
    return f"{what}; once that is mended {ON}"


def drop_output() -> None:
    """Forget what is not printed yet where it cannot be printed: else it fails again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the machine, or its GPU, has too little memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def lacking(error: BaseException) -> str:
    """What did not fit, in one line."""
    size = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
    what = f" for another {size[1]}" if size else ""
    return f"too little memory{what}: give smaller sizes or a smaller --batch_size"


def show_warning(message, *_, **__) -> None:
    if distributed.is_main_process():
        print(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(text) -> str:
    return " ".join(str(text).split())
