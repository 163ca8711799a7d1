from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapters import to_smaller
from models.base import Features, Maps

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs


@METHODS.register("fsp")
class FSP(Distiller):
    """Yim et al., A Gift from Knowledge Distillation, CVPR 2017 (eq. 1-2).

    Trains in a first stage only. The flow matrix (flow of solution procedure, FSP) of two adjacent
    maps is the mean over the positions of their outer product; loss: mean squared difference of the
    student's and the teacher's, summed over the pairs from the stem on. Afterwards the student
    learns from the labels (and `-a`): in that stage the loss is zero, whatever `-b` is.

    Raises ValueError where maps to compare differ in channels.
    Reference: HobbitLong/RepDistiller, distiller_zoo/FSP.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=50.0)
    reads = frozenset({"stem", "stages"})
    only_first_stage = True

    @dataclass(frozen=True)
    class Options:
        pass

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.num_maps = 1 + count_stage_pairs(setup)
        s, t = self.maps(setup.student), self.maps(setup.teacher)
        if [m.shape[1] for m in s] != [m.shape[1] for m in t]:
            shapes = [", ".join(str(tuple(m.shape[1:])) for m in maps) for maps in (s, t)]
            raise ValueError(
                f"stem and stages of the student are {shapes[0]}, of the teacher {shapes[1]}: fsp "
                "needs as many channels in each; choose networks of one family and width, or "
                "--distill abound, which has connectors"
            )

    def maps(self, features: Features) -> Maps:
        """Stem and stages in network order, (B, C, H, W) each."""
        return (features.stem, *features.stages)[: self.num_maps]

    def forward(self, student, teacher, batch):
        return student.stages[0].new_zeros(())

    def first_stage(self, student):
        return student.feature_parameters()

    def first_stage_loss(self, student, teacher, batch):
        return torch.stack(flow_losses(self.maps(student), self.maps(teacher))).sum()


def flow_losses(student: Maps, teacher: Maps) -> list[Tensor]:
    """Maps (B, C, H, W) in network order -> one scalar for each adjacent pair"""
    flows = zip(flow_matrices(student), flow_matrices(teacher), strict=True)
    return [F.mse_loss(s, t) for s, t in flows]


def flow_matrices(maps: Maps) -> list[Tensor]:
    """Maps (B, C, H, W), (B, C', H', W'), ... -> matrices (B, C, C'), one fewer than maps"""
    return [flow_matrix(*to_smaller(a, b)) for a, b in zip(maps, maps[1:], strict=False)]


def flow_matrix(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W), (B, C', H, W) -> (B, C, C')"""
    return a.flatten(2) @ b.flatten(2).mT / (a.shape[2] * a.shape[3])
