"""Train a case as train_student.py would from its command line, on the batches of the recipe."""

import contextlib
import copy
import functools
import itertools
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from cli.networks import load_frozen
from cli.objective import kd_and_method, method_setup
from cli.parse import parse_student
from cli.setting import make_network
from crd.memory import Negatives
from dataset.base import Batch
from engine.device import start
from engine.fit import fit
from engine.objective import Distillation, term_weights
from engine.recipe import make_schedule
from engine.stage import Stage, first_stage, main_stage
from engine.teacher import LiveTeacher
from helper.options import Resolved
from helper.teachers import inner_path
from models.any import learning_rate
from models.base import Classifier
from runs import checkpoint
from tests.trajectories import names
from tests.trajectories.cases import INDEX, NETWORKS, Case, Result, recipe

# What is asked of a data set beside its batches.
DATA = SimpleNamespace(classes=range(INDEX["settings"]["classes"]), image_size=32, networks={})
# What must be typed here beside the flags of a case, by its method.
OWN_FLAGS = {
    "ofd": "--ofd_teacher train",
    "ofd_teacher_in_eval": "--ofd_teacher eval",
    "itrd": "--itrd_correlation 1 --itrd_mutual 1",  # the published code leaves its weights out
}


class RecipeLoader:
    """The recipe's passes in the order in which they are asked for, in the place of a loader.

    `candidates` are those that the batch at hand is compared with in a bank, (B, 1 + k).
    """

    seed = 0

    def __init__(self, case: Case):
        self.data, self.passes = recipe.Data(case["images"]), itertools.count()
        self.labels = torch.from_numpy(self.data.labels)
        self.size, self.k = INDEX["settings"]["batch_size"], INDEX["settings"]["negatives"]

    def __len__(self) -> int:
        return -(-self.data.n // self.size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        for arrays in self.data.batches(next(self.passes), self.size, self.k):
            images, labels, index, self.candidates = map(torch.from_numpy, arrays)
            yield Batch(images, labels, index)

    def draw(self, negatives: Negatives, labels: Tensor, positive: Tensor) -> Tensor:
        """In the place of `Negatives.forward`."""
        assert torch.equal(positive, self.candidates[:, 0])
        assert self.candidates.shape == (len(labels), 1 + negatives.k)
        return self.candidates


class EvaluationLoader:
    """Two images that are evaluated after each epoch, which must change nothing."""

    split = "test"

    def __init__(self, data):
        self.batch = Batch(*map(torch.from_numpy, (data.images[:2], data.labels[:2], np.arange(2))))

    def __len__(self) -> int:
        return 1

    def batches(self, epoch: int) -> list[Batch]:
        return [self.batch]


class NoRecorder:
    """A run that keeps nothing."""

    def restore(self, stage):
        return 0

    def log_step(self, stage, step, means):
        pass

    def finish_epoch(self, stage, epoch, numbers):
        pass

    def describe_kept(self):
        return "nothing is kept"


def replay(case: Case, more_flags: str = "") -> Result:
    """Train the student of a case -> the losses of each step and the tensors.

    Whatever the method, the teacher must be what it was.
    """
    words = shlex.split(f"{case['flags']} {OWN_FLAGS.get(case['method'], '')} {more_flags}")
    train, result = RecipeLoader(case), Result()
    test = EvaluationLoader(train.data)
    with double_precision(), injected_draws(train), contextlib.chdir(folder_of_teachers().name):
        options = parse_student([*words, "--device", "cpu"])
        task = make_task(case, options, train)
        teacher = copy.deepcopy(task.teacher.network.state_dict())
        schedule = make_schedule(options, learning_rate(options.model_s))
        stages = [
            first_stage(task, schedule.start, options, options.init_epochs),
            main_stage(task, schedule, options),
        ]
        result.rows["start"] = names.rows(task, case, "start")
        for stage in filter(None, stages):
            with recorded(stage, options, result):
                fit(stage, train, test, NoRecorder(), options.print_freq)
            when = "final" if stage.is_main else "between"
            result.rows[when] = names.rows(task, case, when)
        for name, tensor in task.teacher.network.state_dict().items():
            assert torch.equal(tensor, teacher[name]), f"the teacher's {name} has changed"
    return result


def make_task(case: Case, options: Resolved, train: RecipeLoader) -> Distillation:
    """Both networks and the method as the recipe starts them, put together as a run is."""
    teacher = load_frozen(options.model_t, Path(options.path_t), DATA)
    student = filled_network(options.model_s, "student")
    setup = method_setup(student, teacher, DATA.image_size, train)
    kd, method = kd_and_method(options, setup)
    names.fill_method(method.double(), case["extra"])
    return Distillation(
        student, LiveTeacher(teacher, start(options)), kd, method, options.distill, options
    )


def filled_network(name: str, role: str) -> Classifier:
    return names.fill_network(make_network(name, DATA), NETWORKS[name], role)


@functools.cache
def folder_of_teachers() -> tempfile.TemporaryDirectory:
    """A folder where the --path_t of every case is the recipe's teacher."""
    folder = tempfile.TemporaryDirectory()
    for name in {case["teacher"] for case in INDEX["cases"]}:
        state = filled_network(name, "teacher").state_dict()
        checkpoint.save(Path(folder.name, inner_path(name)), {"model": state})
    return folder


@contextlib.contextmanager
def recorded(stage: Stage, options: Resolved, result: Result):
    """Note the weighted losses of every step of a stage."""

    def note(task, args, output):
        weights = term_weights(options, options.distill, task.ramp) if stage.is_main else {}
        terms = {
            name: float(weight * output.terms[name].detach()) for name, weight in weights.items()
        }
        own = 0.0 if options.distill == "kd" else terms.get(options.distill, 0.0)
        kd = terms.get("kd", 0.0)
        step = {"total": output.loss.item()}
        if stage.is_main:
            step |= {"ce": terms.get("ce", 0.0), "kd": kd, "method": own, "rest": kd + own}
        for name, value in step.items():
            result.losses.setdefault(f"{stage.name}/{name}", []).append(value)

    handle = stage.task.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def double_precision():
    """Every new tensor is of float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def injected_draws(train: RecipeLoader):
    """The recipe's negatives, and its noise in the place of TeKAP's."""
    noise = recipe.Noise()

    def randn_like(tensor: Tensor, generator: torch.Generator, memory_format) -> Tensor:
        """Of pooled features (B, C), or of n copies of a batch's logits (n, 1, B, K)."""
        if tensor.ndim == 2:
            return torch.from_numpy(noise.draw("features", *tensor.shape))
        copies = [noise.draw("logits", *tensor.shape[2:]) for _ in tensor]
        return torch.from_numpy(np.stack(copies)).view(tensor.shape)

    def forward(negatives: Negatives, labels: Tensor, positive: Tensor) -> Tensor:
        return train.draw(negatives, labels, positive)

    with (
        mock.patch.object(torch, "randn_like", randn_like),
        mock.patch.object(Negatives, "forward", forward),
    ):
        yield
