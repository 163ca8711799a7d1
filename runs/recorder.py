"""What a run leaves: checkpoints, metrics, a summary; and how it goes on after a crash."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from helper.errors import UserError
from helper.files import write_json
from runs import checkpoint, logs
from runs.experiment import in_words, plain
from runs.folder import RunFolder
from runs.stored import FINISHED, SCHEMA, STOPPED


class Run:
    """The record of a training: `restore` each stage, `finish_epoch` after each epoch, `finish`.

    Where `writes` is False (all processes but the main one) nothing is written or printed.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: str,
        facts: Mapping[str, Any],
        state: Mapping[str, Any],
        writes: bool = True,
    ):
        """`facts` go into run.json; `state` is what `RunFolder.open` gave. Facts have to have
        `options`, `origin`, `data` (facts of the data set, kept in checkpoints too) and `epochs`;
        `others` are those of further students by name, if there are any, with their `model`.
        """
        self.folder, self.model, self.facts, self.writes = folder, model, dict(facts), writes
        self.state = dict(state)
        self.history: list[dict[str, float]] = self.state.get("history", [])
        self.last: dict[str, float] = self.state.get("last", {})
        self.best: dict[str, float] = self.state.get("best", {})
        others = self.facts.pop("others", {})
        self.others = {n: {**others[n], **ends_of(n, self.history)} for n in others}
        self.kept: int = self.last.get("epoch", 0)  # epoch of the main stage to resume after
        self.seconds: float = self.state.get("seconds", 0.0)
        self.provenance: list[dict[str, Any]] = []
        self.wandb_id: str | None = None
        self.logger: logs.Logger | None = None

    def start(self, provenance: dict[str, Any], wandb: bool, tb_freq: int) -> None:
        """Write the summary and open the logs. A resumed run appends its provenance."""
        if not self.writes:
            return
        before = self.folder.before
        self.provenance = before.get("provenance", [])
        self.wandb_id = before.get("wandb_id")
        if self.state:
            warn_of_rounding(self.provenance, provenance)
        self.provenance.append(provenance)
        self._write_summary(STOPPED)
        wandb_run = None
        if wandb:
            wandb_run = logs.start_wandb(
                self.folder.path.name, self.wandb_id, dict(self.facts["options"])
            )
            self.wandb_id = wandb_run.id
            self._write_summary(STOPPED)
        self.logger = logs.Logger(self.folder.path, self.history, tb_freq, wandb_run)

    def restore(self, stage) -> int:
        """Put a stage where the interrupted run left it -> how many of its epochs are done."""
        state, file = self.state, self.folder.resume_file
        if not state or (stage.name, state["stage"]) == ("main", "first"):
            return 0
        checkpoint.check_tensors(state["task"], file)
        checkpoint.check_fit(stage.task.training_state(), state["task"], file, "this run")
        if stage.name != state["stage"]:  # the first stage is over: the main one loads its state
            return stage.epochs
        if state["epoch"] > stage.epochs:
            raise UserError(f"{file} is of epoch {state['epoch']}, and there are {stage.epochs}")
        checkpoint.check_optimizer(stage, state["optimizer"], file)
        checkpoint.check_tensors(state["average"], file)
        checkpoint.check_fit(
            stage.average.live if stage.average else {},
            state["average"],
            file,
            "the average of this run",
        )
        stage.load_state(state)
        if self.writes:
            print(f"resumed after epoch {state['epoch']} of the {stage.name} stage", flush=True)
        return state["epoch"]

    def log_step(self, stage, step: int, means: Mapping[str, float]) -> None:
        """Pass on the means so far of an epoch of the main stage."""
        if self.logger and stage.is_main:
            self.logger.step(step, means)

    def finish_epoch(self, stage, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log and save an epoch."""
        if self.writes:
            self.folder.check_exists()
        if stage.is_main:
            self._finish_main_epoch(stage, epoch, numbers)
        elif self.writes:
            if self._is_kept(stage, epoch):
                self._save_resume_file(stage, epoch)
            loss = f"loss {numbers['train_loss']:.4f}"
            print(f"first stage, epoch {epoch}/{stage.epochs}  {loss}", flush=True)

    def describe_kept(self) -> str:
        """What a stopped run leaves, for an error message."""
        if self.kept:
            return f"the checkpoint of epoch {self.kept} is kept in {self.folder.path}"
        return "no epoch was finished, so there is no checkpoint"

    @property
    def students(self) -> dict[str, dict[str, Any]]:
        """The `model` and the `last` and `best` epoch of each student; "" is the first one."""
        first = {"model": self.model, "last": self.last, "best": self.best}
        return {"": first, **self.others}

    def weights_file(self, which: str, name: str = "") -> Path:
        """Of the "last" or the "best" epoch of a student."""
        words = [name, plain(self.students[name]["model"]), which]
        return self.folder.path / f"{'_'.join(filter(None, words))}.pth"

    def finish(self, tested: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Write the summary of a run that is through.

        `tested` has what "last" and "best" of each student give on the test set, where no epoch was
        measured on it.
        """
        if not self.writes:
            return
        for name, student in self.students.items():
            for which, scores in tested.get(name, {}).items():
                student[which] = {**student[which], **scores}
            if not name:
                self.last, self.best = student["last"], student["best"]
        self.logger.close()
        self._write_summary(FINISHED)
        chosen_on = " on the held-out images" if tested else ""
        for name, student in self.students.items():
            last, best = student["last"], student["best"]
            title = " ".join(filter(None, [name, student["model"]]))
            where = "" if name else f", {self.seconds:.0f} s; {self.folder.path}"
            print(
                f"{title}: last {last['test_acc']:.2f} %, best {best['test_acc']:.2f} % "
                f"(epoch {best['epoch']}{chosen_on}){where}"
            )

    def _finish_main_epoch(self, stage, epoch: int, numbers: Mapping[str, float]) -> None:
        self.last = {"epoch": epoch, **numbers}
        self.history.append(self.last)
        if not self.best or logs.accuracy(numbers) > logs.accuracy(self.best):
            self.best = self.last
        for name, other in self.others.items():
            other.update(ends_of(name, self.history))
        self.seconds += numbers["seconds"]
        kept = self._is_kept(stage, epoch)
        self.kept = epoch if kept else self.kept
        if not self.writes:
            return
        for name, own in stage.weights().items():
            self._save_weights(name, own, stage, epoch)
        self.logger.epoch(epoch, numbers)
        # Last of all: a run killed before this line repeats the epoch and writes the same again.
        if kept:
            self._save_resume_file(stage, epoch)
        print(logs.console_line(epoch, stage.epochs, numbers), flush=True)

    def _save_weights(self, name: str, own: Mapping[str, Tensor], stage, epoch: int) -> None:
        """Those of a student, in the files that are due after an epoch."""
        student = self.students[name]
        weights = self._weights(own, epoch, logs.accuracy(student["last"]))
        if name:
            weights["model_name"] = student["model"]
        if student["best"]["epoch"] == epoch:
            checkpoint.save(self.weights_file("best", name), weights)
        if self._is_due(stage, epoch) and not name:
            checkpoint.save(self.folder.path / f"ckpt_epoch_{epoch}.pth", weights)
        if epoch == stage.epochs:
            checkpoint.save(self.weights_file("last", name), weights)

    def _is_due(self, stage, epoch: int) -> bool:
        return epoch % self.facts["options"]["save_freq"] == 0 or epoch == stage.epochs

    def _is_kept(self, stage, epoch: int) -> bool:
        """Whether a run can be resumed after this epoch: after each, with large memories after the
        first one, the last one and every --save_freq."""
        return not stage.task.memories() or epoch == 1 or self._is_due(stage, epoch)

    def _weights(
        self, weights: Mapping[str, Tensor], epoch: int, accuracy: float
    ) -> dict[str, Any]:
        """RepDistiller's layout, and what lets the file say whose weights it holds."""
        return {
            "epoch": epoch,
            "model": {k: v.detach().cpu().contiguous() for k, v in weights.items()},
            "accuracy": accuracy,
            "model_name": self.model,
            **self.facts["data"],
            "experiment": self.folder.experiment.digest,
        }

    def _save_resume_file(self, stage, epoch: int) -> None:
        own = stage.state()
        memories = {name: own["task"].pop(name) for name in stage.task.memories()}
        state = {
            "schema": SCHEMA,
            "stage": stage.name,
            "epoch": epoch,
            **own,
            "last": self.last,
            "best": self.best,
            "history": self.history,
            "seconds": self.seconds,
            "experiment": self.folder.experiment.to_dict(),
        }
        self.folder.write_state(state, memories)

    def _write_summary(self, status: str) -> None:
        experiment = self.folder.experiment
        facts = {name: value for name, value in self.facts.items() if name != "data"}
        summary = {
            "schema": SCHEMA,
            "status": status,
            "name": experiment.name,
            "digest": experiment.digest,
            "model": self.model,
            "last": self.last,
            "best": self.best,
            "seconds": self.seconds,
            **self.facts["data"],
            **facts,
            "experiment": experiment.to_dict(),
            **({"others": self.others} if self.others else {}),
            "provenance": self.provenance,
            "wandb_id": self.wandb_id,
        }
        write_json(self.folder.summary_file, summary)


def ends_of(name: str, history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The `last` and the `best` epoch of a further student: its own numbers, named as the first's.

    Nothing where no epoch is done.
    """
    own = []
    for line in history:
        of_name = {key: value for key, value in line.items() if f"_{name}_" in key}
        renamed = {key.replace(f"_{name}_", "_"): value for key, value in of_name.items()}
        own.append({"epoch": line["epoch"], **renamed})
    return {"last": own[-1], "best": max(own, key=logs.accuracy)} if own else {}


def warn_of_rounding(before: list[dict[str, Any]], now: dict[str, Any]) -> None:
    """Say that bits may differ where a run goes on under other options of rounding."""
    if not before:
        return
    old, new = before[-1].get("options", {}), now["options"]
    changed = [
        f"{name} was {in_words(old, name)} and is {in_words(new, name)}"
        for name in new
        if name in old and old[name] != new[name]
    ]
    if before[-1].get("device") != now["device"] and not changed:
        changed = [f"it ran on {before[-1].get('device')} and runs on {now['device']}"]
    if changed:
        warnings.warn(f"{'; '.join(changed)}: the run goes on, but bits may differ", stacklevel=2)
