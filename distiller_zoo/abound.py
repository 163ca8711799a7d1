from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive_number
from models.adapters import Regressor

from . import METHODS
from .base import Distiller, Recipe, check_stages


@METHODS.register("abound")
class ActivationBoundary(Distiller):
    """Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019.

    A first stage alone: where a neuron of the teacher is on, the student's is to exceed a margin,
    where it is off, to stay below minus the margin; a squared hinge, read before the activation.
    Sum over a map, mean over the batch, times 3/1000; a stage counts half of the next deeper one.
    Connectors bring the student's maps to the teacher's shape. Afterwards the student learns
    from the labels (and `-a`): there the loss is zero, whatever `-b` says.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        ab_margin: float = option(1.0, "margin around the boundary", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_stages(setup)
        self.connectors = nn.ModuleList(
            nn.Identity() if s.shape == t.shape else Regressor(s.shape, t.shape, relu=False)
            for s, t in zip(setup.student.preacts, setup.teacher.preacts)
        )

    def forward(self, student, teacher, batch):
        return student.logits.new_zeros(())

    def first_stage(self, student):
        return [*self.connectors.parameters(), *student.feature_parameters()]

    def first_stage_loss(self, student, teacher, batch):
        connected = [f(s) for f, s in zip(self.connectors, student.preacts)]
        teacher = teacher.preacts[: len(connected)]
        return torch.stack(parts(connected, teacher, self.options.ab_margin)).sum()


def parts(student: Sequence[Tensor], teacher: Sequence[Tensor], margin: float) -> list[Tensor]:
    """Maps (B, C, H, W) of n stages, in equal shapes -> weighted loss of each stage."""
    n, pairs = len(student), zip(student, teacher, strict=True)
    return [2.0 ** (i - n) * stage_loss(s, t, margin) for i, (s, t) in enumerate(pairs, start=1)]


def stage_loss(s: Tensor, t: Tensor, margin: float) -> Tensor:
    """Maps (B, C, H, W) before their activation -> scalar. A teacher's value of 0 is off."""
    with torch.no_grad():  # the nearest map on the right side: the hinge is the distance to it
        right = torch.where(t > 0, s.clamp(min=margin), s.clamp(max=-margin))
    return F.mse_loss(s, right, reduction="sum") * (3 / 1000 / len(s))
