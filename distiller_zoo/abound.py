from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive_number
from models.adapters import Regressor

from . import METHODS
from .base import Distiller, Recipe, check_stages

SCALE = 3 / 1000  # of the published code


@METHODS.register("abound")
class ActivationBoundaries(Distiller):
    """Heo et al., Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019 (eq. 7).

    Which neurons are on? Where the teacher's pre-activation is above 0 the student's should be
    above the margin, elsewhere below minus the margin: squared hinge, summed over the map, mean
    over the batch, twice the weight from one stage to the next.

    It has a first stage only, which trains the connectors and the student's features; afterwards
    -b has no effect.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        ab_margin: float = option(1.0, "distance from 0 to keep", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_stages(setup)
        pairs = zip(setup.student.preacts, setup.teacher.preacts)
        self.connectors = nn.ModuleList(connector(s.shape, t.shape) for s, t in pairs)

    def forward(self, student, teacher, batch):
        return 0 * student.logits.sum()  # all was learned in the first stage

    def first_stage(self, student):
        return [*self.connectors.parameters(), *student.feature_parameters()]

    def first_stage_loss(self, student, teacher, batch):
        connected = [f(s) for f, s in zip(self.connectors, student.preacts)]
        return sum(boundary_losses(connected, teacher.preacts, self.options.ab_margin))


def connector(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """From the shape of a student's map to the teacher's; nothing where they are equal."""
    same = student[1:] == teacher[1:]
    return nn.Identity() if same else Regressor(student, teacher, relu=False)


def boundary_losses(s: list[Tensor], t: list[Tensor], margin: float) -> list[Tensor]:
    """Pre-activations (B, C, H, W) of n stages -> their n weighted losses."""
    pairs = list(zip(s, t))
    weights = [2.0 ** (i - len(pairs) + 1) for i in range(len(pairs))]
    return [SCALE * w * hinge(a, b, margin) / len(a) for w, (a, b) in zip(weights, pairs)]


def hinge(s: Tensor, t: Tensor, margin: float) -> Tensor:
    """(B, C, H, W), (B, C, H, W) -> scalar: squared distance to the right side, summed."""
    towards = (t > 0).to(s.dtype).mul_(2).sub_(1)  # 1 where the teacher is on, else -1
    return F.relu(margin - towards * s).square().sum()
