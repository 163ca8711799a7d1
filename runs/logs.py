"""What a run writes down: TensorBoard, a line of JSON an epoch, the console, optionally wandb."""

import importlib
import json
import os
import platform
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helper.errors import UserError
from helper.files import append, read_regular, write_whole
from helper.forms import are_numbers, is_count


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Epochs 1 to N of a metrics.jsonl; what follows a line that is not the next one is left out,
    as the line that a crash cut short."""
    lines: list[dict[str, Any]] = []
    for line in read_regular(path).split(b"\n") if path.exists() else ():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not is_epoch(content, len(lines) + 1):
            break
        lines.append(content)
    return lines


def measured_on(numbers: Mapping[str, float]) -> str:
    """The split that an epoch was measured on: "val" where images are held out, else "test"."""
    return "val" if "val_acc" in numbers else "test"


def accuracy(numbers: Mapping[str, float]) -> float:
    """What the best epoch is chosen by, in %."""
    return numbers[f"{measured_on(numbers)}_acc"]


def is_epoch(content: Any, number: Any) -> bool:
    """Whether these are the numbers of that epoch."""
    numbers = is_count(number) and are_numbers(content)
    numbers = numbers and f"{measured_on(content)}_acc" in content
    return numbers and content.get("epoch") == number


def import_wandb():
    """The wandb package; UserError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise UserError("--wandb needs the wandb package: pip install wandb") from None


def start_wandb(name: str, run_id: str | None, config: Mapping[str, Any]):
    """A Weights & Biases run; with the id of an earlier one it goes on there."""
    how = {"id": run_id, "resume": "allow"} if run_id else {}
    return import_wandb().init(project="distillation", name=name, config=config, **how)


class Logger:
    """Numbers of each epoch, to every place where somebody looks for them."""

    def __init__(
        self, folder: Path, history: Sequence[Mapping[str, float]], tb_freq: int, wandb_run=None
    ):
        """Go on after the epochs in `history`: what a killed run logged beyond them is dropped.

        `tb_freq`: steps between two points within an epoch.
        """
        self.lines, self.wandb, self.tb_freq = folder / "metrics.jsonl", wandb_run, tb_freq
        text = "".join(line_of(numbers) for numbers in history)
        write_whole(self.lines, lambda file: file.write(text.encode()))
        # A folder each: TensorBoard drops all points of a folder from the step on that a run is
        # resumed at, and one board counts epochs, the other steps.
        self.epochs, self.steps = (Board(folder / "tensorboard" / name) for name in ("", "steps"))
        self._logged_until: int | None = None

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        append(self.lines, line_of({"epoch": epoch, **numbers}).encode())
        self.epochs.add(epoch, numbers)
        if self.wandb:
            self.wandb.log({"epoch": epoch, **numbers})

    def step(self, step: int, means: Mapping[str, float]) -> None:
        """Means so far of an epoch after `step` steps of all; at most one point in `tb_freq`."""
        if self._logged_until is None:  # the first step that is not done yet
            self._logged_until = step - 1
        if step // self.tb_freq == self._logged_until // self.tb_freq:
            return
        self._logged_until = step
        self.steps.add(step, {f"step/{name}": value for name, value in means.items()})

    def close(self) -> None:
        if self.wandb:
            self.wandb.finish()


class Board:
    """Curves for TensorBoard in a folder of its own. The first point added takes the place of all
    that are there from its step on.

    Where they cannot be written a warning says so, once, and the run goes on without them.
    """

    def __init__(self, folder: Path):
        self.folder, self.usable = folder, True
        self._records = None

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """A point of each curve."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not self.usable:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        try:
            if self._records is None:
                self._open(step)
            self._write(step=step, summary=Summary(value=values))
            self._records.flush()
        except OSError as error:
            self.usable = False
            warnings.warn(
                f"no curves for TensorBoard in {self.folder} ({error.strerror}): the run goes on, "
                "and metrics.jsonl has the numbers",
                stacklevel=2,
            )

    def _open(self, step: int) -> None:
        """Begin a file of events. SummaryWriter's thread would print what its disk refuses."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}"
        self._records = RecordWriter((self.folder / name).open("ab"))
        self._write(file_version="brain.Event:2")
        self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **what).SerializeToString())


def line_of(numbers: Mapping[str, float]) -> str:
    return json.dumps(numbers) + "\n"


def console_line(epoch: int, epochs: int, numbers: Mapping[str, float]) -> str:
    """One epoch in one line: the weighted total, then its plain terms."""
    total, split = {"train_loss", "train_acc"}, measured_on(numbers)
    terms = [
        f"{name.removeprefix('train_')} {value:.4f}"
        for name, value in numbers.items()
        if name.startswith("train_") and name not in total
    ]
    others = [
        f", {name.removeprefix(f'{split}_').removesuffix('_acc')} {value:.2f} %"
        for name, value in numbers.items()
        if name.startswith(f"{split}_") and name.endswith("_acc") and name != f"{split}_acc"
    ]
    parts = f"({', '.join(terms)})  " if len(terms) > 1 else " "
    measured = balanced_beside(accuracy(numbers), numbers.get(f"{split}_acc_balanced"))
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}  lr {numbers['lr']:g}  "
        f"loss {numbers['train_loss']:.4f} {parts}"
        f"train {numbers['train_acc']:.2f} %  {split} {accuracy(numbers):.2f} % "
        f"({measured}top-5 {numbers[f'{split}_acc_top5']:.2f}){''.join(others)}  "
        f"{numbers['seconds']:.1f} s  {numbers['images_per_s']:,.0f} images/s"
    )


def balanced_beside(acc: float, balanced: float | None) -> str:
    """'balanced 61.20, ' where classes differ in size and so do the two; else empty."""
    differs = balanced is not None and abs(balanced - acc) >= 0.005
    return f"balanced {balanced:.2f}, " if differs else ""
