from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from helper.options import at_most, count, not_negative, option, share
from models.base import Features

from .base import Distiller


def standard_normal(x: Tensor, generator: Generator | None) -> Tensor:
    """N(0, 1) in the shape of x: the same numbers, whatever the order in which x lies in memory."""
    return torch.randn_like(x, generator=generator, memory_format=torch.contiguous_format)


class NoisyTeacher(Distiller):
    """Hossain et al., Single Teacher, Multiple Perspectives (TeKAP), ICLR 2025: on features.

    Any method's loss on the teacher, plus its loss on each noisy copy of it. A copy differs in the
    pooled vector, (1 - w) * pooled + w * N(0, std^2); stages and logits are the teacher's own.
    What the method keeps (memories, queues) is updated for each of them. CRD has a sum of its own
    (`Distiller.of_teachers`): the published code scores the student once and counts that score for
    each teacher.
    """

    reads = frozenset({"logits", "pooled"})  # with maps in it the loss would only count again

    @dataclass(frozen=True)
    class Options:
        noisy_teachers: int = option(
            1, "noisy copies of the teacher's features", parse=at_most(1000, count)
        )
        feature_noise: float = option(0.1, "share of noise in a copy's features", parse=share)
        feature_noise_std: float = option(
            0.1, "standard deviation of that noise", parse=not_negative
        )

    def __init__(self, options, setup, method: Distiller):
        super().__init__(options, setup)
        self.method, self.recipe = method, method.recipe
        self.reads = method.reads and method.reads | {"pooled"}
        self.capturable = method.capturable

    @property
    def teacher_mode(self):
        return self.method.teacher_mode

    def deployed(self, student, teacher):
        return self.method.deployed(student, teacher)

    def prepare(self, teacher, images):
        self.method.prepare(teacher, images)

    def begin(self, epoch, epochs):
        self.method.begin(epoch, epochs)

    def forward(self, student, teacher, batch):
        copies = [self.noisy(teacher) for _ in range(self.options.noisy_teachers)]
        loss = self.method.of_teachers(student, [teacher, *copies], batch)
        self.parts = self.method.parts
        return loss

    def noisy(self, teacher: Features) -> Features:
        """The same pass with noise in the pooled vector."""
        noise = self.options.feature_noise_std * standard_normal(teacher.pooled, self.generator)
        return teacher.replace(pooled=teacher.pooled.lerp(noise, self.options.feature_noise))

    def first_stage(self, student):
        return self.method.first_stage(student)

    def first_stage_rate(self, rate):
        return self.method.first_stage_rate(rate)

    def first_stage_loss(self, student, teacher, batch):
        return self.method.first_stage_loss(student, teacher, batch)
