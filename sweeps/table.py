"""The runs of a table: which may start, what is done when one ends, how far each is."""

import enum
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cli.job import Job
from cli.main import LACKING
from runs.experiment import plain
from runs.logs import accuracy, read_lines

USER_ERROR = 2  # exit code
NO_MEMORY = (LACKING, "out of memory")  # in the last words of a run
LATEST = 5  # epochs from whose seconds the time left is told


class Status(enum.Enum):
    WAITING = "waiting"
    STARTED = "started"  # a worker has it, or will when one is free
    FINISHED = "finished"
    FAILED = "failed"


@dataclass
class Task:
    """A run of the table."""

    job: Job
    teaches: bool = False  # students need it
    status: Status = Status.WAITING
    attempts: int = 0
    whole_gpu: bool = False  # its share of one was too little memory
    log_size: int = 0  # before this attempt
    why: str = ""  # it failed, or is tried again

    @property
    def name(self) -> str:
        """'KD wrn_16_2 -> resnet8, trial 1'"""
        job = self.job
        pair = f"{job.teacher} -> {job.model}" if job.teacher else job.model
        to = f" to {dict(job.experiment.options)['dataset']}" if job.kind == "probe" else ""
        label = "teacher" if self.teaches else job.label
        return f"{label} {pair}{to}, trial {job.experiment.trial}"

    @property
    def log(self) -> Path:
        return hidden(self.job.root) / "logs" / f"{plain(self.job.place)}.log"

    @property
    def runs(self) -> bool:
        """Whether a worker has begun with this attempt."""
        return self.status is Status.STARTED and size(self.log) > self.log_size

    def progress(self) -> "Progress":
        return progress(self.job)

    def last_words(self) -> str:
        """The line in which the log tells of an error, else its last one."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or [line for line in lines if line.strip()] or ["nothing"])[-1]


class Progress(NamedTuple):
    epoch: int
    epochs: int
    accuracy: float | None  # in %, of the last epoch
    seconds: float | None  # that are left


def progress(job: Job) -> Progress:
    """How far a run is, from what it has written."""
    epochs = dict(job.experiment.options)["epochs"]
    files = [Path(path, "metrics.jsonl") for path in job.folders()]
    newest = max((f for f in files if f.exists()), key=lambda f: f.stat().st_mtime, default=None)
    lines = read_lines(newest) if newest else []
    if not lines:
        return Progress(0, epochs, None, None)
    per_epoch = statistics.mean(line.get("seconds", 0.0) for line in lines[-LATEST:])
    left = per_epoch * (epochs - len(lines))
    return Progress(len(lines), epochs, accuracy(lines[-1]), left)


def hidden(root: str) -> Path:
    """What a sweep keeps beside the runs of a --save_dir."""
    return Path(root) / ".sweep"


def ending(task: Task, code: int | None) -> str:
    """How an attempt ended, in words."""
    if code is None:
        return "its worker was lost"
    return f"killed by signal {-code}" if code < 0 else task.last_words()


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class Sweep:
    """The table of a plan. `retries` of a run that is killed or ends with what is not its fault."""

    def __init__(self, jobs: Iterable[Job], retries: int):
        self.retries = retries
        jobs = list(jobs)
        teachers = {need for job in jobs if job.kind == "student" for need in job.needs}
        self.tasks = {job: Task(job, job in teachers) for job in jobs}
        for task in self.tasks.values():
            if task.job.finished():
                task.status = Status.FINISHED

    def count(self, status: Status) -> int:
        return sum(task.status is status for task in self.tasks.values())

    @property
    def is_over(self) -> bool:
        return all(t.status in (Status.FINISHED, Status.FAILED) for t in self.tasks.values())

    def ready(self) -> list[Task]:
        """Runs that can start: those that they need are finished."""
        found = []
        for task in self.tasks.values():  # each behind those that it needs
            if task.status is not Status.WAITING:
                continue
            needs = [self.tasks[job] for job in task.job.needs]
            if lost := [need for need in needs if need.status is Status.FAILED]:
                self.fail(task, f"it needs {lost[0].name}, which failed")
            elif all(need.status is Status.FINISHED for need in needs):
                found.append(task)
        return found

    def start(self, task: Task) -> None:
        task.status, task.log_size = Status.STARTED, size(task.log)
        task.attempts += 1

    def end(self, task: Task, code: int | None) -> None:
        """A run ended with an exit code; None where its worker or node was lost."""
        words = ending(task, code)
        if code == 0 and task.job.finished():
            task.status, task.why = Status.FINISHED, ""
        elif code == 0:
            self.fail(task, f"it ended well, and its run is not in {task.job.root}")
        elif code == USER_ERROR:
            self.fail(task, words)
        elif task.attempts > self.retries:
            self.fail(task, f"{words} ({task.attempts} attempts)")
        else:
            task.status, task.why = Status.WAITING, words
            task.whole_gpu |= any(text in words for text in NO_MEMORY)

    def fail(self, task: Task, why: str) -> None:
        task.status, task.why = Status.FAILED, why
