from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.options import not_negative, option

from . import METHODS
from .base import Distiller, Recipe
from .rows import unit


@METHODS.register("ega")
class EGA(Distiller):
    """Ma et al., Distilling Knowledge by Embedding Graph Alignment, BMVC 2022.

    The samples of a batch are the nodes of a graph, correlations (Pearson) of their pooled features
    its edges. Edges: those among the student's vectors against those among the teacher's. Nodes:
    student against teacher, which should correlate for the same sample alone. Both are Frobenius
    norms. Where the widths differ, a trained linear map leads from the student's to the teacher's.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        ega_nodes: float = option(1.0, "weight of the nodes", parse=not_negative)
        ega_edges: float = option(0.3, "weight of the edges", parse=not_negative)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        c_s, c_t = setup.student.pooled.shape[1], setup.teacher.pooled.shape[1]
        self.embed = nn.Identity() if c_s == c_t else nn.Linear(c_s, c_t)

    def forward(self, student, teacher, batch):
        s, t = centred(self.embed(student.pooled)), centred(teacher.pooled)  # (B, C)
        nodes = (s @ t.T - torch.eye(len(s), dtype=s.dtype, device=s.device)).norm()
        edges = (s @ s.T - t @ t.T).norm()
        return self.options.ega_nodes * nodes + self.options.ega_edges * edges


def centred(x: Tensor) -> Tensor:
    """(B, C) -> (B, C): inner products of the rows are correlations; a constant row becomes 0."""
    return unit(x - x.mean(dim=1, keepdim=True))
