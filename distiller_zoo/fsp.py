from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapters import to_smaller
from models.base import Features, Maps

from . import METHODS
from .base import Distiller, Recipe, check_stages


@METHODS.register("fsp")
class FSP(Distiller):
    """Yim et al., A Gift from Knowledge Distillation, CVPR 2017 (eq. 1-2).

    A first stage alone: how does a stage turn its input into its output? The flow matrix (FSP) of
    two neighbouring maps is the mean over the positions of their outer product; mean squared
    difference of these matrices, summed over the stem and the stages. Afterwards the student learns
    from the labels (and `-a`): there the loss is zero, whatever `-b` says.

    Raises ValueError where maps to compare differ in channels.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=50.0)

    @dataclass(frozen=True)
    class Options:
        pass

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.maps = 1 + check_stages(setup)
        s, t = self.chain(setup.student), self.chain(setup.teacher)
        if [m.shape[1] for m in s] != [m.shape[1] for m in t]:
            shapes = [", ".join(str(tuple(m.shape[1:])) for m in maps) for maps in (s, t)]
            raise ValueError(
                f"stem and stages of the student are {shapes[0]}, of the teacher {shapes[1]}: fsp "
                "needs as many channels in each; choose networks of one family and width, or "
                "--distill abound, which has connectors"
            )

    def chain(self, shown: Features) -> Maps:
        """The maps that flow into one another."""
        return (shown.stem, *shown.stages)[: self.maps]

    def forward(self, student, teacher, batch):
        return student.logits.new_zeros(())

    def first_stage(self, student):
        return student.feature_parameters()

    def first_stage_loss(self, student, teacher, batch):
        return torch.stack(parts(self.chain(student), self.chain(teacher))).sum()


def parts(student: Maps, teacher: Maps) -> list[Tensor]:
    """Maps (B, C, H, W) each, in network order -> one scalar for each two neighbours."""
    return [F.mse_loss(s, t) for s, t in zip(flows(student), flows(teacher), strict=True)]


def flows(maps: Maps) -> list[Tensor]:
    """Maps (B, C, H, W), (B, C', H', W'), ... -> matrices (B, C, C'), one less than maps."""
    return [flow(*to_smaller(a, b)) for a, b in zip(maps, maps[1:], strict=False)]


def flow(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W), (B, C', H, W) -> (B, C, C')"""
    return a.flatten(2) @ b.flatten(2).mT / (a.shape[2] * a.shape[3])
