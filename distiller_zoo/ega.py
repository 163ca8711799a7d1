from dataclasses import dataclass

import torch
from torch import nn

from helper.options import not_negative, option

from . import METHODS
from .base import Distiller, Recipe
from .rows import center_and_normalize


@METHODS.register("ega")
class EGA(Distiller):
    """Ma et al., Distilling Knowledge by Embedding Graph Alignment, BMVC 2022.

    The samples of a batch are the nodes of a graph; an edge is the Pearson correlation of two
    samples' pooled features. Edge loss: Frobenius norm of the student's edges minus the teacher's.
    Node loss: Frobenius norm of the correlations between student and teacher minus the identity.
    Where the widths differ, a trained linear layer maps the student's features to the teacher's.

    Reference: giakoumoglou/distillers, EGA.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"pooled"})

    @dataclass(frozen=True)
    class Options:
        ega_nodes: float = option(1.0, "weight of the nodes", parse=not_negative)
        ega_edges: float = option(0.3, "weight of the edges", parse=not_negative)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        c_s, c_t = setup.student.pooled.shape[1], setup.teacher.pooled.shape[1]
        self.embed = nn.Identity() if c_s == c_t else nn.Linear(c_s, c_t)

    def forward(self, student, teacher, batch):
        s, t = (
            center_and_normalize(x) for x in (self.embed(student.pooled), teacher.pooled)
        )  # (B, C)
        node_loss = (s @ t.T - torch.eye(len(s), dtype=s.dtype, device=s.device)).norm()
        edge_loss = (s @ s.T - t @ t.T).norm()
        self.parts = {"nodes": node_loss.detach(), "edges": edge_loss.detach()}
        return self.options.ega_nodes * node_loss + self.options.ega_edges * edge_loss
