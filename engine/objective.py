"""A task owns what is trained, the teacher and the losses of one batch. The loop knows no method.

B batch, b a process's share of it, K classes.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.base import Batch
from dataset.loader import Loader
from distiller_zoo.base import Distiller, Recipe
from engine.device import Numerics
from engine.distributed import gather_batch
from engine.features import of_whole_batch
from engine.mixup import draw_pairs, mix
from engine.teacher import Teacher, batch_norms
from helper.errors import UserError
from models.base import Classifier, Features, he_init

LARGE = 10**8  # bytes of a buffer too large to be written every epoch; CIFAR's memories have 26 MB
PROBE_STD = 0.01  # of the weights of a linear probe at its start
PROBE_VERSION = 2  # of how a probe is trained; raise it when its numbers change


CrossEntropy = Callable[[Tensor, Tensor], Tensor]  # logits (B, K), labels (B,) -> scalar


class Output(NamedTuple):
    """What one batch gives."""

    loss: Tensor  # the weighted total, which is minimised
    terms: dict[str, Tensor]  # unweighted terms and parts of them by name, each a scalar
    logits: Tensor | None  # (B, K); None where no classifier is trained
    weighted: dict[str, Tensor] = {}  # terms times their weights, where `loss` is a sum of several


class Task(nn.Module):
    """A student in training. `forward` gives the losses of one batch of it."""

    # Of the losses and of mixup, alike on all processes.
    generator: torch.Generator | None = None
    rate: float | None = None  # what the student's learning rate starts at; None: as the run's
    capturable = True  # whether a step of it reads nothing on the host: `engine.graph`

    def __init__(self, student: Classifier, numerics: Numerics):
        super().__init__()
        self.student, self.numerics = numerics.place(student, "student"), numerics
        self.cross_entropy: CrossEntropy = F.cross_entropy  # on labels
        self.mixup = 0.0  # alpha of mixup, where images are mixed
        self.run_student = numerics.compiled(student.features)

    def forward(self, batch: Batch) -> Output:
        """The losses of one batch. It reads nothing on the host, and knows no epoch.

        Where there are several processes, each runs the networks on its share of the batch, and all
        of them compute the same losses of the whole batch.
        """
        raise NotImplementedError

    def prepare(self, images: Iterable[Batch]) -> None:
        """Learn what has to be known before training from the training images as they are.

        It is called once in a run; what it finds is a part of `training_state`.
        """

    def begin_epoch(self, epoch: int, epochs: int, place: int) -> dict[str, float]:
        """Get ready for an epoch counted from 1, of so many, which the loader calls `place` ->
        numbers to be logged of it."""
        return {}

    @property
    def trained(self) -> "dict[str, Task]":
        """The students that are trained, evaluated and kept, by the name that their numbers and
        files have: "" for the student itself."""
        return {"": self}

    def predict(self, images: Tensor) -> Tensor:
        """Images (b, 3, H, W) -> float32 logits (b, K)."""
        with self.numerics.autocast():
            return self.run_student(self.numerics.images(images, "student")).logits.float()

    def mix_images(self, alpha: float) -> None:
        """Train on mixtures of images from now on: mixup with this alpha."""
        self.mixup = alpha
        self.generator = self.generator or torch.Generator(self.numerics.device)

    def mixed(self, batch: Batch) -> tuple[Batch, CrossEntropy]:
        """What is trained on, and its cross-entropy: with mixup on the labels of both images."""
        if not self.mixup:
            return batch, self.cross_entropy
        order, share = draw_pairs(self.mixup, batch.labels, self.generator)
        views = [mix(view, order, share) for view in batch.views]

        def cross_entropy(logits, labels):
            own, others = (self.cross_entropy(logits, x) for x in (labels, labels[order]))
            return share * own + (1 - share) * others

        images = torch.stack(views) if len(views) > 1 else views[0]
        return batch._replace(images=images), cross_entropy

    def student_features(self, batch: Batch) -> Features:
        """The student's features of the whole batch, in float32."""
        with self.numerics.autocast():
            own = self.run_student(self.numerics.images(batch.images, "student"))
        return of_whole_batch(own, len(batch.labels), self.numerics)

    def seed_losses(self, seed: int) -> None:
        """Seed what the losses draw from."""
        if self.generator is not None:
            self.generator.manual_seed(seed)

    def training_state(self) -> dict[str, Tensor]:
        """Everything that training changes."""
        return self.state_dict()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `training_state` gave."""
        self.load_state_dict(state)

    def memories(self) -> list[str]:
        """Which of `training_state` are large buffers: a method's memories of many samples."""
        state = self.training_state()
        return [n for n, buffer in self.named_buffers() if n in state and buffer.nbytes > LARGE]


class Supervised(Task):
    """A network and cross-entropy."""

    def forward(self, batch):
        batch, cross_entropy = self.mixed(batch)
        logits = gather_batch(self.predict(batch.images), len(batch.labels))
        loss = cross_entropy(logits, batch.labels)
        return Output(loss, {"ce": loss}, logits)


class Distillation(Task):
    """gamma * CE + alpha * KD + beta * method; a term with no weight is not computed.

    `name` is the method's: its term is logged under it, and its parts as NAME_PART.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Teacher,
        kd: Distiller,
        method: Distiller,
        name: str,
        recipe: Recipe,
    ):
        if recipe.beta:
            student = method.deployed(student, teacher.network)
        super().__init__(student, teacher.numerics)
        self.teacher = teacher
        if recipe.beta and method.teacher_mode == "train":
            teacher.normalise_by_batch()
        device = self.numerics.device
        self.kd, self.method = kd.to(device), method.to(device)
        self.views = nn.ModuleList(kd.views).to(device)  # those of the method as well
        self.name, self.recipe, self.generator = name, recipe, method.generator
        self.capturable = method.capturable or not recipe.beta
        # Share of the method's weight in this epoch. A tensor, so that a captured step reads it.
        ramp = torch.tensor(warm_up(recipe, 1), dtype=torch.float64, device=device)
        self.register_buffer("ramp", ramp, persistent=False)

    def prepare(self, images):
        self.method.prepare(self.teacher.live().features, images)

    def begin_epoch(self, epoch, epochs, place):
        self.ramp.fill_(warm_up(self.recipe, epoch))
        for part in (*self.views, self.kd, self.method):
            part.begin(epoch, epochs)
        return self.teacher.begin_epoch(place)

    def features(self, batch: Batch) -> tuple[Features, Features | None]:
        """Student's and teacher's features of the whole batch, in float32.

        Each view of the images is a pass of its own: BatchNorm sees one at a time.
        """
        passes = [self.run_view(batch._replace(images=images)) for images in batch.views]
        (student, teacher), *strong = passes
        for strong_s, strong_t in strong:
            student = student.replace(strong=strong_s)
            teacher = teacher and teacher.replace(strong=strong_t)
        return student, teacher

    def run_view(self, batch: Batch) -> tuple[Features, Features | None]:
        """The same of a batch with one view of the images."""
        return self.student_features(batch), self.teacher.features(batch)

    def forward(self, batch):
        batch, cross_entropy = self.mixed(batch)
        return self.output(*self.features(batch), batch, cross_entropy)

    def output(
        self,
        student: Features,
        teacher: Features | None,
        batch: Batch,
        cross_entropy: CrossEntropy,
    ) -> Output:
        """The losses of what the networks show of a batch."""
        weights = term_weights(self.recipe, self.name, self.ramp if self.recipe.warmup else 1.0)
        terms = {}
        if "ce" in weights:
            terms["ce"] = mean(cross_entropy(s.logits, batch.labels) for s in student.views)
        if "kd" in weights:
            pairs = zip(student.views, teacher.views, strict=True)
            terms["kd"] = mean(self.kd(s, t, batch) for s, t in pairs)
        if self.name in weights.keys() - {"ce", "kd"}:
            terms[self.name] = self.method(student, teacher, batch)
        for term, value in terms.items():
            if value.ndim:
                raise UserError(
                    f"{term} gives a loss of shape {tuple(value.shape)}: it has to be a scalar"
                )
        losses = {name: weighted(term, weights[name]) for name, term in terms.items()}
        loss = sum_of(losses.values())
        parts = {f"{self.name}_{part}": value for part, value in self.method.parts.items()}
        for view in self.views:
            parts |= view.parts
        return Output(loss, {**terms, **parts}, student.logits, losses)

    def training_state(self):
        state = self.state_dict()
        return {key: value for key, value in state.items() if not key.startswith("teacher.")}

    def load_training_state(self, state):
        self.load_state_dict(state, strict=False)  # the teacher's part is not in it


class Mutual(Distillation):
    """Two students, each with the other's features in the place of a teacher's.

    The loss is the sum of both objectives; what is logged of the second one is called peer_NAME.
    """

    def __init__(self, students: tuple[Classifier, Classifier], peer_rate: float, *parts):
        """`parts` as of Distillation, the teacher being `NoTeacher`; the second student's learning
        rate starts at `peer_rate`."""
        super().__init__(students[0], *parts)
        self.peer = Task(students[1], self.numerics)
        self.peer.rate = peer_rate

    @property
    def trained(self):
        return {"": self, "peer": self.peer}

    def run_view(self, batch):
        return self.student_features(batch), self.peer.student_features(batch)

    def forward(self, batch):
        batch, cross_entropy = self.mixed(batch)
        first, second = self.features(batch)
        own, others = (
            self.output(*pair, batch, cross_entropy) for pair in ((first, second), (second, first))
        )
        terms = {f"peer_{name}": value for name, value in others.terms.items()}
        weighted = {name: loss + others.weighted[name] for name, loss in own.weighted.items()}
        return Output(own.loss + others.loss, {**own.terms, **terms}, own.logits, weighted)


def make_cross_entropy(
    labels: Tensor, classes: int, smoothing: float, balanced: bool
) -> CrossEntropy:
    """Logits (B, K), labels (B,) -> scalar, for training labels (N,).

    With `smoothing` (Szegedy et al., CVPR 2016, section 7) that share of each label goes to all
    classes alike; `balanced` weighs a class of n images with N / (K * n).
    """
    weight = None
    if balanced:
        sizes = labels.cpu().bincount(minlength=classes).clamp(min=1)  # (K,)
        weight = (len(labels) / (classes * sizes)).float().to(labels.device)
    return functools.partial(F.cross_entropy, weight=weight, label_smoothing=smoothing)


def term_weights(
    recipe: Recipe, name: str, ramp: float | Tensor = 1.0
) -> dict[str, float | Tensor]:
    """Weight of each term of the objective; those of no weight are absent.

    `name` is the method's; `ramp` is the share of its weight that is reached.
    """
    weights = {"ce": recipe.gamma, "kd": recipe.alpha}
    if recipe.beta:
        weights[name] = ramp * recipe.beta
    return {n: weight for n, weight in weights.items() if isinstance(weight, Tensor) or weight}


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Scalars -> their sum, without a 0 to begin with."""
    return functools.reduce(torch.add, values)


def mean(losses: Iterable[Tensor]) -> Tensor:
    """Of scalars, one or several."""
    first, *others = losses
    return torch.stack([first, *others]).mean() if others else first


def weighted(term: Tensor, weight: float | Tensor) -> Tensor:
    """A term times its weight, in the term's type."""
    return term * (weight.to(term.dtype) if isinstance(weight, Tensor) else weight)


def warm_up(recipe: Recipe, epoch: int) -> float:
    """Share of the method's weight in an epoch counted from 1: it grows over `warmup` epochs."""
    return min(epoch / recipe.warmup, 1.0) if recipe.warmup else 1.0


@torch.no_grad()
def norm_of_one_value(task: Task, image_size: int) -> str | None:
    """The first BatchNorm in training that has one value a channel of an image, by name.

    It cannot normalise a batch of one image; None where every one can.
    """
    task.train()
    names = {norm: name for name, norm in task.named_modules() if norm in set(batch_norms(task))}
    found: list[str] = []

    def look(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0][0, 0].numel() == 1:
            found.append(names[norm])

    handles = [norm.register_forward_pre_hook(look) for norm in names if norm.training]
    task.eval()  # nothing is counted
    for network in [module for module in task.modules() if isinstance(module, Classifier)]:
        network(torch.zeros(1, 3, image_size, image_size, device=task.numerics.device))
    for handle in handles:
        handle.remove()
    return found[0] if found else None


class FirstStage(Task):
    """What some methods train before the student's own turn: `Distiller.first_stage`.

    What is trained is in train, its BatchNorm too; the rest of the student stays in eval. Its state
    is that of the distillation it prepares.
    """

    def __init__(self, distillation: Distillation):
        nn.Module.__init__(self)
        self.distillation, self.student = distillation, distillation.student
        self.numerics, self.generator = distillation.numerics, distillation.generator
        self.capturable = distillation.method.capturable
        self.parameters_trained = list(distillation.method.first_stage(distillation.student))
        trained = {id(parameter) for parameter in self.parameters_trained}
        self.modules_trained = [  # of the student
            module
            for module in self.student.modules()
            if any(id(parameter) in trained for parameter in module.parameters(recurse=False))
        ]

    def train(self, mode: bool = True) -> "FirstStage":
        super().train(mode)
        self.distillation.train(mode)
        self.student.eval()
        for module in self.modules_trained:
            module.training = mode  # of this module alone, not of those inside
        return self

    def begin_epoch(self, epoch, epochs, place):
        return self.distillation.teacher.begin_epoch(place)

    def forward(self, batch):
        student, teacher = self.distillation.features(batch)
        loss = self.distillation.method.first_stage_loss(student, teacher, batch)
        return Output(loss, {}, None)

    def training_state(self):
        return self.distillation.training_state()

    def load_training_state(self, state):
        self.distillation.load_training_state(state)

    def memories(self):
        return self.distillation.memories()


class LinearProbe(Task):
    """A frozen network and a new classifier on its pooled features, which starts N(0, 0.01^2).

    The backbone stays in eval: its BatchNorm is frozen as well, unlike in the published code.
    """

    def __init__(self, student: Classifier, numerics: Numerics):
        super().__init__(student.requires_grad_(False), numerics)
        he_init(student.head, PROBE_STD)
        student.head.requires_grad_(True)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(False)
        self.student.head.train(mode)
        return self

    def forward(self, batch):
        batch, cross_entropy = self.mixed(batch)
        logits = gather_batch(self.predict(self.pooled(batch.images)), len(batch.labels))
        loss = cross_entropy(logits, batch.labels)
        return Output(loss, {"ce": loss}, logits)

    @torch.no_grad()
    def pooled(self, images: Tensor) -> Tensor:
        """Images (b, 3, H, W) -> what the classifier reads of them, (b, C) in float32."""
        with self.numerics.autocast():
            return self.run_student(self.numerics.images(images, "student")).pooled.float()

    def predict(self, pooled: Tensor) -> Tensor:
        """(b, C) -> (b, K)"""
        return self.student.head(pooled)


class PooledOnce:
    """A loader whose batches hold what a probe's classifier reads, (b, C), in the images' place.

    Test images are the same in every epoch and the backbone is frozen, so one pass is enough.
    """

    def __init__(self, probe: LinearProbe, loader: Loader):
        self.probe, self.loader, self.split = probe, loader, loader.split
        self._batches: list[Batch] = []

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int) -> list[Batch]:
        """The batches of every epoch; the first call computes them."""
        if not self._batches:
            self.probe.eval()
            batches = self.loader.batches(epoch)
            self._batches = [b._replace(images=self.probe.pooled(b.images)) for b in batches]
        return self._batches
