"""What a sweep shows while it runs: a live table on a terminal, else a line for each change."""

import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from sweeps.pool import import_needed
from sweeps.table import Progress, Status, Sweep, Task

QUIET = 60.0  # seconds between two lines on a run that goes on
SHOWN = 30  # rows of the live table


def headline(sweep: Sweep) -> str:
    """'3 of 16 runs finished, 2 running, 1 failed, 10 waiting'"""
    running = sum(task.runs for task in sweep.tasks.values())
    failed, done = sweep.count(Status.FAILED), sweep.count(Status.FINISHED)
    counts = {"running": running, "failed": failed}
    counts["waiting"] = len(sweep.tasks) - done - running - failed
    more = "".join(f", {n} {name}" for name, n in counts.items() if n)
    return f"{done} of {len(sweep.tasks)} runs finished{more}"


def cells(now: Progress) -> tuple[str, str, str]:
    """Epoch, accuracy and time left, in words; empty where they are not known."""
    left = "" if now.seconds is None else str(timedelta(seconds=round(now.seconds)))
    accuracy = "" if now.accuracy is None else f"{now.accuracy:.2f} %"
    return f"{now.epoch}/{now.epochs}", accuracy, left


class Lines:
    """A line for each change, and now and then one on each run that goes on."""

    def __init__(self):
        self.states: dict[Path, tuple] = {}  # by the log of each run
        self.told = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def update(self, sweep: Sweep) -> None:
        told = time.monotonic() - self.told > QUIET
        self.told = time.monotonic() if told else self.told
        for task in sweep.tasks.values():
            state = (task.status, task.runs, task.attempts)
            changed = state != self.states.get(task.log, (Status.WAITING, False, 0))
            if text := self.text(task, changed or (told and task.runs)):
                print(f"{time.strftime('%T')} {text} ({headline(sweep)})", flush=True)
            self.states[task.log] = state

    def text(self, task: Task, wanted: bool) -> str:
        if not wanted:
            return ""
        if task.runs:
            epoch, accuracy, left = cells(task.progress())
            parts = [f"epoch {epoch}", accuracy, left and f"{left} left"]
            return f"running: {task.name}, {', '.join(filter(None, parts))}"
        if task.status is Status.FINISHED:
            return f"finished: {task.name}, {cells(task.progress())[1]}"
        if task.status is Status.FAILED:
            return f"failed: {task.name}: {task.why}"
        again = task.status is Status.WAITING and task.why
        return f"again: {task.name}: {task.why}" if again else ""


class Live:
    """A table of what runs and what failed, renewed in its place."""

    def __init__(self):
        self.rich = import_needed("rich.live")
        self.live = self.rich.Live(refresh_per_second=2)

    def __enter__(self) -> "Live":
        self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)

    def update(self, sweep: Sweep) -> None:
        self.live.update(self.table(sweep))

    def table(self, sweep: Sweep) -> Any:
        """What rich shows."""
        if not (rows := shown(sweep.tasks.values())):
            return headline(sweep)
        escape = import_needed("rich.markup").escape
        table = import_needed("rich.table").Table(title=headline(sweep), title_justify="left")
        for name in ("run", "epoch", "accuracy", "time left", ""):
            table.add_column(name, justify="left" if name in ("run", "") else "right")
        for task in rows:
            known = cells(task.progress()) if task.runs else ("", "", "")
            again = f"attempt {task.attempts}, {task.why}" if task.why and task.runs else task.why
            table.add_row(*map(escape, (task.name, *known, again)))
        return table


def shown(tasks: Iterable[Task]) -> list[Task]:
    """What runs, then what failed."""
    tasks = list(tasks)
    failed = [task for task in tasks if task.status is Status.FAILED]
    return [*(task for task in tasks if task.runs), *failed][:SHOWN]
