"""What cases start from: whole runs, the same stopped after an epoch, and how runs are compared."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine import objective
from runs.recorder import Run
from scripts.campaign.sandbox import LIMIT, Child, Outcome, warm_up

FAKE = "--dataset fake --fake_size 40 --fake_classes 4 --image_size 8 --batch_size 16 --device cpu"
RECIPE = f"{FAKE} --epochs 3 --save_freq 2"
TEACHER = f"train_teacher --model resnet8 {FAKE} --epochs 1 --save_dir teachers"
STUDENT = f"train_student --path_t teacher/last.pth --model_s resnet8 {RECIPE}"
RUNS = {
    "teacher": f"train_teacher --model resnet8 {RECIPE}",
    "student": f"{STUDENT} --distill kd --tekap",
    "memory": f"{STUDENT} --distill crd --nce_k 8",
    "two stages": f"{STUDENT} --distill factor --init_epochs 2",
    "bank": f"{STUDENT} --distill kd --teacher_bank bank",
    "probe": f"transfer_student --path_s teacher/last.pth {RECIPE}",
}
UNEQUAL = {"seconds", "images_per_s", "bank_missing"}  # in equal runs


def run_below(folder: Path) -> Path:
    """The one run below a folder."""
    (found,) = folder.glob("save/*/*/run.json")
    return found.parent


class Ground:
    """Working folders with `teacher/last.pth` and, below save/, a finished or a stopped run."""

    def __init__(self, folder: Path):
        objective.LARGE = 10_000  # so that memories have a file of their own, as large ones do
        self.folder = folder
        self.seconds: dict[str, float] = {}  # that the whole runs take
        start = folder / "empty"
        start.mkdir()
        warm_up(start, TEACHER.split())
        (trained,) = start.glob("teachers/models/*/resnet8_last.pth")
        (start / "teacher").mkdir()
        trained.replace(start / "teacher" / "last.pth")
        shutil.rmtree(start / "teachers")
        (start / "modules").unlink()
        for name, line in RUNS.items():
            finished, stopped = (self.copy("empty", name, of) for of in ("finished", "stopped"))
            outcome = Child(line.split(), finished).wait(300)
            if outcome.code:
                raise RuntimeError(f"{line}: {outcome.stderr}")
            self.seconds[name] = outcome.seconds
            Child(line.split(), stopped, prepare=die_after_epoch_2).wait(300)

    def place(self, state: str, name: str) -> Path:
        """A working folder: "empty", or of a run that is "finished" or "stopped"."""
        return self.folder / (state if state == "empty" else f"{state} {name}")

    def copy(self, state: str, name: str, to: str) -> Path:
        target = self.folder / f"{to} {name}"
        return Path(shutil.copytree(self.place(state, name), target))


def die_after_epoch_2() -> None:
    finish = Run.finish_epoch

    def finish_and_die(run, stage, epoch, numbers):
        finish(run, stage, epoch, numbers)
        if stage.is_main and epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.finish_epoch = finish_and_die


@dataclass
class Case:
    """One attack: what it may use, and what was not as it should be."""

    part: str
    number: int
    seed: int
    ground: Ground
    folder: Path  # its own, to work in
    problems: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.chance = random.Random(f"{self.seed} {self.part} {self.number}")

    def enter(self, state: str, name: str = "") -> None:
        """Begin with a copy of a working folder."""
        shutil.copytree(self.ground.place(state, name), self.folder, dirs_exist_ok=True)

    def start(self, line: str | Sequence[str], *how, **more) -> Child:
        """Start a command as `Child` does; what becomes of it is the case's to judge."""
        words = line.split() if isinstance(line, str) else line
        self.log.append(f"$ {' '.join(map(repr, words)) if words is line else line}")
        return Child(words, self.folder, *how, **more)

    def run(
        self, line: str | Sequence[str], codes: Sequence[int] = (0,), limit: float = LIMIT, **how
    ) -> Outcome:
        """Run a command that has to end with one of these exit codes."""
        return self.judge(self.start(line, **how).wait(limit), codes)

    def judge(self, outcome: Outcome, codes: Sequence[int]) -> Outcome:
        self.note(outcome)
        self.problems += outcome.problems(codes)
        return outcome

    def note(self, outcome: Outcome) -> None:
        said = "".join(f"\n  {line}" for line in outcome.stderr.splitlines()[-12:])
        self.log.append(f"-> {outcome.code} after {outcome.seconds:.1f} s{said}")

    def expect(self, true: bool, problem: str) -> None:
        if not true:
            self.problems.append(problem)

    def expect_whole(self, name: str) -> None:
        """The run in this folder has to be the one that nobody disturbed, bit for bit."""
        mine = list(self.folder.glob("save/*/*/run.json"))
        if len(mine) != 1:
            self.problems.append(f"{len(mine)} runs instead of one")
            return
        whole = run_below(self.ground.place("finished", name))
        self.problems += differences(whole, mine[0].parent)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs that should be equal: curves, weights, optimizers."""
    found = []
    if numbers(one) != numbers(other):
        found.append("metrics.jsonl differs")
    if not same(summary(one), summary(other)):
        found.append("run.json differs")
    names = {path.name for path in one.glob("*.pth")}
    if names != {path.name for path in other.glob("*.pth")}:
        return [*found, "other checkpoints"]
    for name in sorted(names):
        try:
            a, b = (torch.load(f / name, weights_only=True) for f in (one, other))
        except Exception:  # whatever a reader says of a damaged file
            found.append(f"{name} is broken")
            continue
        found += [
            f"{name}: {key} differs"
            for key in ("model", "task", "optimizer", "accuracy")
            if not same(a.get(key), b.get(key))
        ]
    return found


def numbers(folder: Path) -> list[dict | str]:
    """Curves of a run; what is broken in them as it is."""
    found = []
    for line in (folder / "metrics.jsonl").read_text(errors="replace").splitlines():
        try:
            found.append(without(json.loads(line)))
        except (ValueError, AttributeError):
            found.append(line)
    return found


def summary(folder: Path) -> list:
    content = json.loads((folder / "run.json").read_text())
    return [content["status"], without(content["last"]), without(content["best"])]


def without(numbers: dict) -> dict:
    return {key: value for key, value in numbers.items() if key not in UNEQUAL}


def same(a, b) -> bool:
    """Whether two nested containers of tensors are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(same, a, b))
    return a == b


Check = Callable[[Case], None]
