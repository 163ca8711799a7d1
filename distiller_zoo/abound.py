from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive_number
from models.adapters import Regressor

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs


@METHODS.register("abound")
class ActivationBoundary(Distiller):
    """Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019.

    Trains in a first stage only. Squared hinge loss on pre-activations: above +margin where the
    teacher's is positive, below -margin elsewhere. Summed over a map, mean over the batch, times
    3/1000; each stage weighs half of the next deeper one. Connectors bring the student's maps to
    the teacher's shape. Afterwards the student learns from the labels (and `-a`): in that stage the
    loss is zero, whatever `-b` is.

    Raises ValueError where a network has no maps, or a connector cannot join their sizes.
    Reference: HobbitLong/RepDistiller, distiller_zoo/AB.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"preacts"})
    only_first_stage = True

    @dataclass(frozen=True)
    class Options:
        ab_margin: float = option(1.0, "margin around the boundary", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        count_stage_pairs(setup)
        self.connectors = nn.ModuleList(
            nn.Identity() if s.shape == t.shape else Regressor(s.shape, t.shape, relu=False)
            for s, t in zip(setup.student.preacts, setup.teacher.preacts)
        )

    def forward(self, student, teacher, batch):
        return student.preacts[0].new_zeros(())

    def first_stage(self, student):
        return [*self.connectors.parameters(), *student.feature_parameters()]

    def first_stage_loss(self, student, teacher, batch):
        connected = [f(s) for f, s in zip(self.connectors, student.preacts)]
        teacher = teacher.preacts[: len(connected)]
        return torch.stack(stage_losses(connected, teacher, self.options.ab_margin)).sum()


def stage_losses(s: Sequence[Tensor], t: Sequence[Tensor], margin: float) -> list[Tensor]:
    """Pre-activations (B, C, H, W) of n stages, in equal shapes -> n weighted scalars"""
    n, pairs = len(s), zip(s, t, strict=True)
    return [2.0 ** (i - n) * stage_loss(s, t, margin) for i, (s, t) in enumerate(pairs, start=1)]


def stage_loss(s: Tensor, t: Tensor, margin: float) -> Tensor:
    """Pre-activations (B, C, H, W), (B, C, H, W) -> scalar. A teacher's value of 0 is inactive."""
    with torch.no_grad():  # the nearest map that satisfies the margin: the hinge is the distance
        target = torch.where(t > 0, s.clamp(min=margin), s.clamp(max=-margin))
    return F.mse_loss(s, target, reduction="sum") * (3 / 1000 / len(s))
