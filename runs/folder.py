"""A run's folder: whose it is, who may write there now, and what an interrupted run left."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helper.errors import UserError
from helper.forms import wrong_in
from runs import checkpoint, logs
from runs.experiment import Experiment
from runs.lock import FolderLock
from runs.stored import FINISHED, SCHEMA, START_ANEW, STATE, STOPPED, read_state, read_summary

NEW = "new"  # what a folder holds, beside STOPPED and FINISHED, which run.json says
OWN_FILES = ("run.json", "*.pth", "metrics.jsonl")
MEMORIES = "memories_{stage}_{epoch}.pth"
SHARED = ("stage", "epoch", "experiment")  # what resume.pth and the memories' file both say


class RunFolder:
    """The folder of one experiment. One process at a time writes there, under a lock."""

    def __init__(self, path: Path, experiment: Experiment):
        self.path, self.experiment = path, experiment
        self.lock = FolderLock(path)
        self.before: dict[str, Any] = {}  # what run.json said when the folder was opened

    @property
    def resume_file(self) -> Path:
        return self.path / "resume.pth"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "run.json"

    def check(self, resume: bool, overwrite: bool) -> str:
        """What the folder holds of this experiment: NEW, STOPPED (to be resumed) or FINISHED.

        Raises UserError, before anything is computed, where starting would lose what another run
        left, or would go on with other numbers than it began with.
        """
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other: give one of them")
        for path in self._own_files():
            if path.exists() and not path.is_file():
                kind = "a folder" if path.is_dir() else "no regular file"
                raise UserError(f"{path} is {kind}, which no run makes: move it away")
        if overwrite:
            return NEW
        if not self.summary_file.exists():
            if any(self.path.glob("*.pth")):
                raise UserError(
                    f"{self.path} holds checkpoints that no run here can go on with: "
                    "--overwrite to replace them, another --save_dir to leave them"
                )
            return NEW
        summary = self.read_summary()
        self._check_same(summary.get("experiment"), self.summary_file)
        if summary.get("status") == FINISHED:
            self._check_weights(summary)
            return FINISHED
        if not self.resume_file.exists():  # within its first epoch a run has nothing to lose
            if len(logs.read_lines(self.metrics_file)) > 1:
                raise UserError(
                    f"{self.path} holds a run whose resume.pth is gone: {START_ANEW}, "
                    "another --save_dir to leave it"
                )
            return NEW
        if not resume:
            raise UserError(
                f"{self.path} holds a run that was stopped: --resume to go on with it, {START_ANEW}"
            )
        return STOPPED

    def check_free(self) -> None:
        """UserError that says who writes here, where somebody does."""
        if self.path.is_dir():
            with suppress(OSError):  # `open` says what is wrong with the folder
                self.lock.acquire()
                self.lock.release()

    def stopped_sibling(self) -> str:
        """Which stopped run beside this one differs from it least, and in what; "" for none."""
        found = []
        for file in set(self.path.parent.glob("*/run.json")) - {self.summary_file}:
            with suppress(UserError):
                summary = read_summary(file)
                other = Experiment.from_dict(summary.get("experiment"))
                alike = (
                    other.title == self.experiment.title and other.trial == self.experiment.trial
                )
                if alike and summary.get("status") == STOPPED:
                    found.append((self.experiment.differences(other), file.parent))
        if not found:
            return ""
        differences, path = min(found, key=lambda pair: len(pair[0]))
        return f"{path.name} was stopped, of which {'; '.join(differences)}"

    def read_summary(self) -> dict[str, Any]:
        """What run.json says; UserError where it is broken or of an earlier release."""
        summary = read_summary(self.summary_file)
        if (schema := summary.get("schema", 1)) != SCHEMA:
            raise UserError(
                f"{self.path} holds a run of another release (its run.json has schema {schema}, "
                f"here it is {SCHEMA}): another --save_dir to leave it, {START_ANEW}"
            )
        return summary

    def _check_weights(self, summary: Mapping[str, Any]) -> None:
        """UserError unless the weights of a finished run, of each student, are there."""
        found = map(checkpoint.load, self.path.glob("*_last.pth"))
        own = [
            x for x in found if isinstance(x, dict) and x.get("experiment") == summary.get("digest")
        ]
        if len(own) > len(summary.get("others", {})):
            return
        raise UserError(f"{self.path} is finished, but its weights are gone: {START_ANEW}")

    def check_exists(self) -> None:
        """An OSError where the folder was taken away: it is not made anew with half a run in it."""
        self.path.stat()

    @contextmanager
    def open(self, resume: bool, overwrite: bool) -> Iterator[dict[str, Any]]:
        """Hold the lock, and clear the folder or read what an interrupted run left: its state,
        empty for a new run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path} ({error.strerror}): another --save_dir"
            ) from None
        try:
            self._remove_leftovers()
            found = self.check(resume, overwrite)
            if found == FINISHED:
                raise UserError(f"{self.path} was finished by another process just now")
            self.before = self._read_before(overwrite)
            if found == NEW:
                self._clear()
            yield self._read_state() if found == STOPPED else {}
        finally:
            self.lock.release()

    def write_state(self, state: Mapping[str, Any], memories: Mapping[str, Any]) -> None:
        """Write what `open` reads: resume.pth, and in a file of their own `memories`, the large
        part of its `task`.

        That file is whole on disk before resume.pth names it, and the one before is removed after:
        wherever a run is killed, the two that are read are of one epoch.
        """
        if memories:
            state = {**state, "memories": MEMORIES.format(**state)}
            content = {**{name: state[name] for name in SHARED}, "task": memories}
            checkpoint.save(self.path / state["memories"], content)
        checkpoint.save(self.resume_file, state)
        self._remove_other_memories(state)

    def _remove_other_memories(self, state: Mapping[str, Any]) -> None:
        for path in self.path.glob("memories_*.pth"):
            if path.name != state.get("memories"):
                path.unlink()

    def _read_before(self, overwrite: bool) -> dict[str, Any]:
        """The summary that the interrupted run wrote, of which the run is a continuation."""
        return self.read_summary() if self.summary_file.exists() and not overwrite else {}

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a killed run: '.resume.pth.x7k2m9qa'."""
        for path in self.path.glob(".*.*"):
            name = path.name[1:].rpartition(".")[0]
            if any(Path(name).match(pattern) for pattern in OWN_FILES):
                path.unlink()

    def _clear(self) -> None:
        """Remove what an earlier run left in this folder, and nothing else.

        run.json goes first, since without it nothing is finished; but last of a run that was
        stopped, since without it weights are nobody's.
        """
        goes_last = self.summary_file if self.before else None
        for path in sorted(self._own_files(), key=lambda path: path == goes_last):
            path.unlink()
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def _own_files(self) -> list[Path]:
        """What runs made in this folder."""
        return [path for pattern in OWN_FILES for path in self.path.glob(pattern)]

    def _check_same(self, stored: Mapping[str, Any] | None, file: Path) -> None:
        """UserError that names what differs unless `stored` is this experiment."""
        try:
            there = Experiment.from_dict(stored)
        except UserError as error:
            raise UserError(f"{file} cannot be read: {error}; {START_ANEW}") from None
        if differences := self.experiment.differences(there):
            raise UserError(
                f"{self.path} holds another experiment: {'; '.join(differences)}. Give the options "
                f"of that run, another --save_dir or --trial, or {START_ANEW}"
            )

    def _read_state(self) -> dict[str, Any]:
        """What an interrupted run left; UserError where it cannot be that of this one."""
        state = read_state(self.resume_file, self.metrics_file)
        self._check_same(state["experiment"], self.resume_file)
        if "memories" in state:
            state["task"].update(self._read_memories(state))
        self._remove_other_memories(state)
        return state

    def _read_memories(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `write_state` kept apart."""
        path = self.path / MEMORIES.format(**state)
        if not path.exists():
            raise UserError(f"{path}, which resume.pth needs, is gone: {START_ANEW}")
        content = checkpoint.load(path)
        forms = {name: STATE[name] for name in (*SHARED, "task")}
        if wrong_in(content, forms) or any(content[name] != state[name] for name in SHARED):
            raise UserError(f"{path} is of another run or epoch than resume.pth: {START_ANEW}")
        return content["task"]
