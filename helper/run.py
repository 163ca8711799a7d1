"""A run's folder: what is in it, who may write there, and how a run goes on after a crash."""

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from helper import checkpoint, distributed, files, logger
from helper.errors import UserError
from helper.options import Resolved, count, option

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class RunOptions:
    trial: int = option(1, "number of the run; ends the name of its folder", parse=count)
    save_dir: str = option("./save", "where runs are kept")
    resume: bool = option(False, "go on with a run that was stopped; start it if it never ran")
    overwrite: bool = option(False, "start anew where a run already is")
    wandb: bool = option(False, "log to Weights & Biases as well")


# What may differ between a run and its continuation: none of it changes a number.
FREE_TO_CHANGE = {
    "resume", "overwrite", "wandb", "save_dir", "data_dir", "cache_dir", "path_t", "path_s",
    "print_freq", "tb_freq", "cfg", "save_freq", "num_workers", "device", "compile",
}  # fmt: skip


class Run:
    """One run: `open` its folder, `restore` what was there, `finish_epoch` after each, `finish`."""

    def __init__(self, folder: Path, model: str, options: Resolved, facts: Mapping[str, Any]):
        """`facts` go into run.json beside the options: objective, teacher, classes ...

        Raises UserError, before anything is computed, where the folder holds another run.
        """
        self.folder, self.model, self.options, self.facts = folder, model, options, dict(facts)
        self.seed = options.trial if options.seed is None else options.seed
        self.epochs = options.epochs
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.spent = 0.0
        self.logger: logger.Logger | None = None  # of the first process, the only one that writes
        self._opened = False
        self._logged_until = 0
        self._resumed: dict[str, Any] = {}
        if options.wandb:
            logger.import_wandb()
        distributed.on_first(self._guard)

    @property
    def resume_file(self) -> Path:
        return self.folder / "resume.pth"

    def finished(self) -> bool:
        """Whether the folder already holds this run, whole."""
        stored = distributed.on_first(self._stored)
        return not self.options.overwrite and stored.get("status") == "finished"

    def kept(self) -> str:
        """What a stopped run leaves, for an error message."""
        if self.last:
            return f"the checkpoint of epoch {self.last['epoch']} is kept in {self.folder}"
        return "no epoch was finished, so there is no checkpoint"

    def open(self, task) -> None:
        """Make the folder this run's: read what is to be resumed, or clear what is overwritten."""
        if self._opened:
            return
        self._opened = True
        if state := distributed.on_first(self._read_or_clear):
            self._resumed = state
            self.last, self.best, self.spent = state["last"], state["best"], state["seconds"]
        if distributed.rank():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parameters = sum(p.numel() for p in task.student.parameters())
        self._write_summary("running")
        wandb_run = None
        if self.options.wandb:
            wandb_run = logger.import_wandb().init(
                project="distillation", name=self.folder.name, config=dict(self.options.values)
            )
        self.logger = logger.Logger(self.folder, self.last.get("epoch", 0), wandb_run)

    def restore(self, stage: str, task, optimizer, scaler) -> int:
        """Put a stage where the resume file left it -> the number of its epochs that are done."""
        state = self._resumed
        if not state or (stage, state["stage"]) == ("main", "first"):
            return 0
        checkpoint.check_fit(task.state_to_resume(), state["task"], self.resume_file, "this run")
        target = getattr(task, "task", task)  # a first stage works on the task it prepares
        target.load_state_dict(state["task"], strict=False)  # the teacher's part is not in it
        if stage != state["stage"]:
            return self.options.init_epochs
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        print(f"resumed after epoch {state['epoch']} of the {stage} stage: {self.resume_file}")
        return state["epoch"]

    def log_step(self, step: int, means: Mapping[str, float], every: int) -> None:
        """Pass on the means so far, at most once in `every` steps."""
        if self.logger and step // every > self._logged_until // every:
            self.logger.step(step, means)
            self._logged_until = step

    def finish_epoch(
        self, epoch: int, numbers: Mapping[str, float], task, optimizer, scaler, keep: bool
    ) -> None:
        """Log and save an epoch; `keep` also leaves a `ckpt_epoch_N.pth`."""
        self.last = {"epoch": epoch, **numbers}
        better = numbers["test_acc"] > self.best.get("test_acc", -1.0)
        if better:
            self.best = self.last
        self.spent += numbers["seconds"]
        if not self.logger:
            return
        weights = self._weights(task, epoch, numbers["test_acc"])
        if better:
            checkpoint.save(self.folder / f"{self.file_name}_best.pth", weights)
        if keep:
            checkpoint.save(self.folder / f"ckpt_epoch_{epoch}.pth", weights)
        if epoch == self.epochs:
            checkpoint.save(self.folder / f"{self.file_name}_last.pth", weights)
        self.logger.epoch(epoch, numbers)
        # Last of all: a run killed before this line repeats the epoch and writes the same again.
        self._save_resume_file("main", epoch, task, optimizer, scaler)
        print(logger.console_line(epoch, self.epochs, numbers), flush=True)

    def finish_first(self, epoch: int, epochs: int, loss: float, task, optimizer, scaler) -> None:
        """Save an epoch of the first stage."""
        if not self.logger:
            return
        self._save_resume_file("first", epoch, task, optimizer, scaler)
        print(f"first stage, epoch {epoch}/{epochs}  loss {loss:.4f}", flush=True)

    def finish(self) -> dict[str, Any]:
        """Write the summary -> the summary; empty where another process writes it."""
        if not self.logger:
            return {}
        self.logger.close()
        summary = self._write_summary("finished")
        print(
            f"{self.model}: last {self.last['test_acc']:.2f} %, best {self.best['test_acc']:.2f} % "
            f"(epoch {self.best['epoch']}), {self.spent:.0f} s; {self.folder}"
        )
        return summary

    @property
    def file_name(self) -> str:
        return plain(self.model)

    def _weights(self, task, epoch: int, accuracy: float) -> dict[str, Any]:
        """RepDistiller's layout, and the names that let the file say whose weights it holds."""
        return {
            "epoch": epoch,
            "model": {
                k: v.detach().cpu().contiguous() for k, v in task.student.state_dict().items()
            },
            "accuracy": accuracy,
            "model_name": self.model,
            **self._data(),
        }

    def _guard(self) -> None:
        """UserError where starting here would lose what somebody else's run left."""
        options = self.options
        if options.resume and options.overwrite:
            raise UserError("--resume and --overwrite contradict each other: give one of them")
        if options.overwrite or not any(self.folder.glob("*.pth")):
            return
        status = self._stored().get("status")
        if status == "finished" and not options.resume:
            raise UserError(
                f"{self.folder} holds a finished run: "
                "--overwrite to run it anew, another --trial to run it again"
            )
        if status == "running" and not options.resume:
            raise UserError(
                f"{self.folder} holds a run that was stopped: "
                "--resume to go on with it, --overwrite to start it anew"
            )
        # Within its first epoch a run has no resume file yet, and nothing to lose.
        begun = len(logger.read_lines(self.folder / "metrics.jsonl")) > 1
        if status is None or (begun and not self.resume_file.exists()):
            raise UserError(
                f"{self.folder} holds checkpoints that no run here can go on with: "
                "--overwrite to replace them, another --trial to leave them"
            )

    def _stored(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "run.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            raise UserError(
                f"{self.folder / 'run.json'} cannot be read: --overwrite starts the run anew"
            ) from None

    def _clear(self) -> None:
        """Remove what an earlier run left in this folder, and nothing else."""
        for pattern in ("*.pth", "metrics.jsonl", "run.json"):
            for path in self.folder.glob(pattern):
                path.unlink()
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)

    def _save_resume_file(self, stage: str, epoch: int, task, optimizer, scaler) -> None:
        state = {
            "stage": stage,
            "epoch": epoch,
            "task": task.state_to_resume(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "last": self.last,
            "best": self.best,
            "seconds": self.spent,
            "seed": self.seed,
            "options": dict(self.options.values),
            "origin_of_data": self._origin_of_data(),
        }
        checkpoint.save(self.resume_file, state)

    def _origin_of_data(self) -> dict[str, Any]:
        """What the numbers of a run come from, wherever the files lie."""
        networks = [name for name in ("teacher", "source") if name in self.facts]
        return self._data() | {name: self.facts[name]["sha256"] for name in networks}

    def _data(self) -> dict[str, Any]:
        kept = ("data", "classes", "image_size", "mean", "std")
        return {name: list_of(self.facts[name]) for name in kept}

    def _read_or_clear(self) -> dict[str, Any] | None:
        """What the run goes on from; None, and an empty folder, for a new run."""
        if self.options.resume and self.resume_file.exists():
            return self._read_resume_file()
        self._clear()
        return None

    def _read_resume_file(self) -> dict[str, Any]:
        state = checkpoint.load(self.resume_file)
        if not isinstance(state, dict) or not {"stage", "epoch", "origin_of_data"} <= state.keys():
            raise UserError(
                f"{self.resume_file} is no resume file: --overwrite starts the run anew"
            )
        for name, now in self.options.values.items():
            before = state["options"].get(name, now)
            if name not in FREE_TO_CHANGE and before != now:
                raise UserError(
                    f"--resume: {name} was {before} and is {now} now: "
                    "give the options of the run, or --overwrite to start it anew"
                )
        for name, now in self._origin_of_data().items():
            if state["origin_of_data"][name] != now:
                raise UserError(
                    f"--resume: the {name} is not that of the run any more: give the same files, "
                    "or --overwrite to start it anew"
                )
        return state

    def _write_summary(self, status: str) -> dict[str, Any]:
        summary = {
            "status": status,
            "model": self.model,
            "parameters": self.parameters,
            "last": self.last,
            "best": self.best,
            "seconds": self.spent,
            **self.facts,
            "seed": self.seed,
            "options": dict(self.options.values),
            "origin": dict(self.options.origin),
            "command": sys.argv,
            "processes": distributed.ranks(),
            "versions": versions(),
            "git_commit": git_commit(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        files.write_json(self.folder / "run.json", summary)
        return summary


def list_of(value: Any) -> Any:
    """A tuple as the list that it is after a file."""
    return list(value) if isinstance(value, tuple) else value


def plain(name: str) -> str:
    """A name that every file system takes: 'torchvision:resnet18' -> 'torchvision-resnet18'."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


def git_commit() -> str | None:
    """The commit of this toolkit, '+' behind it when files differ from it; None outside git."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
