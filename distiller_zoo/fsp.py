import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapters import to_smaller
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe, check_stages


@METHODS.register("fsp")
class FSP(Distiller):
    """Yim et al., A Gift from Knowledge Distillation, CVPR 2017 (eq. 1-2).

    How does one layer's map flow into the next? Mean squared difference of the matrices of inner
    products between the channels of neighbouring maps, summed over the neighbours.

    It has a first stage only, which trains the student's features; afterwards -b has no effect.
    Raises ValueError where the networks' channels differ.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=50.0)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_stages(setup)
        s, t = (tuple(x.shape[1] for x in maps(f)) for f in (setup.student, setup.teacher))
        if s != t:
            raise ValueError(
                f"FSP compares matrices of channels, and they differ: student {s}, teacher {t}; "
                "take networks of one family and width, or another method"
            )

    def forward(self, student, teacher, batch):
        return 0 * student.logits.sum()  # all was learned in the first stage

    def first_stage(self, student):
        return student.feature_parameters()

    def first_stage_loss(self, student, teacher, batch):
        return sum(flow_losses(maps(student), maps(teacher)))


def maps(shown: Features) -> list[Tensor]:
    return [shown.stem, *shown.stages]


def flow_losses(s: list[Tensor], t: list[Tensor]) -> list[Tensor]:
    """Maps (B, C, H, W) in network order -> a scalar for each two neighbours."""
    return [F.mse_loss(a, b) for a, b in zip(flows(s), flows(t), strict=True)]


def flows(maps: list[Tensor]) -> list[Tensor]:
    """(B, C, H, W) each -> (B, C, C') for each two neighbours, on the smaller of the two sizes."""
    return [flow(a, b) for a, b in zip(maps, maps[1:], strict=False)]


def flow(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W), (B, C', H', W') -> (B, C, C')"""
    a, b = (x.flatten(2) for x in to_smaller(a, b))
    return torch.bmm(a, b.mT) / a.shape[2]
