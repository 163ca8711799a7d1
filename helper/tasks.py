"""A task is what is trained and the losses of one batch of it. B batch, K classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.base import Batch
from dataset.loader import Loader
from distiller_zoo.base import Distiller, Recipe
from helper.device import Numerics
from helper.distributed import whole, whole_features
from models.base import Classifier, Features

Losses = dict[str, Tensor]  # weighted terms of the objective, each a scalar


class Task(nn.Module):
    """A network in training. `forward` says what one batch of it costs."""

    def __init__(self, student: Classifier, numerics: Numerics):
        super().__init__()
        self.student, self.numerics = numerics.place(student, "student"), numerics
        self.run_student = numerics.compiled(student.features)

    def forward(self, batch: Batch, epoch: int) -> tuple[Tensor, Losses]:
        """One batch in an epoch counted from 1 -> logits (B, K) and the terms of the objective.

        Where there are several processes, each runs the networks on its share of the batch, and all
        of them compute the same losses of the whole batch.
        """
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        """Images (b, 3, H, W) -> float32 logits (b, K)."""
        with self.numerics.autocast():
            return self.run_student(self.numerics.images(images, "student")).logits.float()

    def state_to_resume(self) -> dict[str, Tensor]:
        """Everything that training changes."""
        return self.state_dict()


class Supervised(Task):
    """A network and cross-entropy."""

    def forward(self, batch, epoch):
        logits = whole(self.predict(batch.images), len(batch.labels))
        return logits, {"ce": F.cross_entropy(logits, batch.labels)}


class Distillation(Task):
    """gamma * CE + alpha * KD + beta * method; a term with no weight is not computed."""

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        kd: Distiller,
        method: Distiller,
        recipe: Recipe,
        numerics: Numerics,
    ):
        super().__init__(student, numerics)
        self.teacher = numerics.place(teacher, "teacher").requires_grad_(False)
        self.run_teacher = numerics.compiled(teacher.features)
        self.kd, self.method = kd.to(numerics.device), method.to(numerics.device)
        self.recipe = recipe

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        self.teacher.eval()  # its BatchNorm statistics stay as they were learned
        return self

    def features(self, batch: Batch) -> tuple[Features, Features]:
        """What student and teacher show of the whole batch, in float32."""
        with self.numerics.autocast():
            student = self.run_student(self.numerics.images(batch.images, "student"))
            with torch.no_grad():
                teacher = self.run_teacher(self.numerics.images(batch.images, "teacher"))
        if self.numerics.amp != "off":
            student, teacher = student.float(), teacher.float()
        n = len(batch.labels)
        return whole_features(student, n), whole_features(teacher, n)

    def forward(self, batch, epoch):
        student, teacher = self.features(batch)
        weigh, losses = self.recipe, {}
        if weigh.gamma:
            losses["ce"] = weigh.gamma * F.cross_entropy(student.logits, batch.labels)
        if weigh.alpha:
            losses["kd"] = weigh.alpha * self.kd(student, teacher, batch)
        if weigh.beta:
            ramp = min(epoch / weigh.warmup, 1.0) if weigh.warmup else 1.0
            losses["method"] = ramp * weigh.beta * self.method(student, teacher, batch)
        return student.logits, losses

    def state_to_resume(self):
        state = self.state_dict()
        return {key: value for key, value in state.items() if not key.startswith("teacher.")}


class FirstStage(nn.Module):
    """What some methods train before the student's own turn: `Distiller.first_stage`.

    What is trained is in train, its BatchNorm too; the rest of the student stays in eval.
    """

    def __init__(self, task: Distillation):
        super().__init__()
        self.task, self.student, self.numerics = task, task.student, task.numerics
        trained = {id(parameter) for parameter in task.method.first_stage(task.student)}
        self.trained = [  # modules of the student
            module
            for module in task.student.modules()
            if any(id(parameter) in trained for parameter in module.parameters(recurse=False))
        ]

    def train(self, mode: bool = True) -> "FirstStage":
        super().train(mode)
        self.task.train(mode)
        self.task.student.eval()
        for module in self.trained:
            module.training = mode  # of this module alone, not of those inside
        return self

    def forward(self, batch: Batch, epoch: int) -> tuple[None, Losses]:
        """One batch -> no logits, the loss of the first stage."""
        student, teacher = self.task.features(batch)
        return None, {"first": self.task.method.first_stage_loss(student, teacher, batch)}

    def state_to_resume(self) -> dict[str, Tensor]:
        """Everything that this stage changes, under the names that the main stage has for it."""
        return self.task.state_to_resume()


class LinearProbe(Task):
    """A frozen network and a new classifier on its pooled features.

    The backbone stays in eval: its BatchNorm is frozen as well, unlike in the published code.
    """

    def __init__(self, student: Classifier, numerics: Numerics):
        super().__init__(student.requires_grad_(False), numerics)
        student.head.requires_grad_(True)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(False)
        self.student.head.train(mode)
        return self

    def forward(self, batch, epoch):
        logits = whole(self.predict(self.pooled(batch.images)), len(batch.labels))
        return logits, {"ce": F.cross_entropy(logits, batch.labels)}

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
        self.probe, self.loader = probe, loader
        self._batches: list[Batch] = []

    def batches(self, epoch: int) -> list[Batch]:
        """The batches of every epoch; the first call computes them."""
        if not self._batches:
            batches = self.loader.batches(epoch)
            self._batches = [b._replace(images=self.probe.pooled(b.images)) for b in batches]
        return self._batches
