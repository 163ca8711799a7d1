from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import not_negative, option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe


@METHODS.register("dist")
class DIST(LogitDistiller):
    """Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022.

    Inter-class loss: 1 - the Pearson correlation of the student's and the teacher's probabilities
    of a sample, mean over the samples. Intra-class loss: 1 - that of the probabilities which the
    samples of the batch have of a class, mean over the classes. Both are times T^2. Of one sample
    nothing can be correlated: its intra-class loss is the constant T^2. Of several rows a sample
    those of one view are compared with one another.

    T is 1 on ImageNet. Reference: zkxufo/TTM, distiller_zoo/dist.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    temperature = "dist_tau"

    @dataclass(frozen=True)
    class Options:
        dist_beta: float = option(1.0, "weight of the inter-class loss", parse=not_negative)
        dist_gamma: float = option(1.0, "weight of the intra-class loss", parse=not_negative)
        dist_tau: float = option(4.0, "temperature of both softmaxes", parse=positive_number)

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The published temperature on ImageNet, for any pair."""
        return {"dist_tau": 1.0} if data == "imagenet" else {}

    def loss(self, rows, labels):
        o = self.options
        p, q = (F.softmax(x / o.dist_tau, dim=2) for x in rows[:2])  # (V, B, K)
        between_classes = 1 - pearson(p, q, dim=2)  # (V, B)
        within_classes = 1 - pearson(p, q, dim=1)  # (V, K)
        inter = (rows.weight * between_classes).mean(dim=1).sum()
        intra = rows.weight.mean(dim=1) @ within_classes.mean(dim=1)
        self.parts = {"inter": inter.detach(), "intra": intra.detach()}
        return o.dist_tau**2 * (o.dist_beta * inter + o.dist_gamma * intra)


def pearson(a: Tensor, b: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    """Correlation along one dimension, which goes; `eps` is added to the product of the norms."""
    a, b = (x - x.mean(dim=dim, keepdim=True) for x in (a, b))
    return (a * b).sum(dim=dim) / (a.norm(dim=dim) * b.norm(dim=dim) + eps)
