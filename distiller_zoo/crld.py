from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import not_negative, option, positive_number, share

from . import METHODS
from .base import LogitDistiller, Recipe, Rows
from .rows import kl

# (teacher, student) -> weight of the terms within a view, where it is not 2.
WITHIN = {
    ("resnet110", "resnet32"): 1.0,
    ("resnet110", "resnet20"): 1.0,
    ("wrn_40_2", "resnet8x4"): 1.0,
    ("wrn_40_2", "wrn_40_1"): 0.5,
    ("resnet56", "resnet20"): 0.5,
    ("resnet32x4", "ShuffleV2"): 0.5,
}


@METHODS.register("crld")
class CRLD(LogitDistiller):
    """Zhang et al., Cross-View Consistency Regularisation for KD (CRLD), ACM MM 2024.

    A weak and a strong view of each image go through both networks. Within a view: KL of student
    and teacher on each of the two, where the teacher's confidence on the WEAK view reaches a
    threshold. Crossed: KL of the student on one view and the teacher on the other, where its
    confidence on the STRONG view reaches another. T^2 * KL at temperature T; the mean is over all
    samples, masked ones included. Confidence is at temperature 1, of plain logits.

    Cross-entropy is the mean of both views, so gamma 2 is the published sum. The weights of single
    pairs are those of DeepKD's copy, which trains with an optimizer of its own.
    Reference: haiduo/DeepKD, mdistiller/distillers/CRLD.py.
    """

    recipe = Recipe(gamma=2.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)
        crld_within: float = option(2.0, "weight of the terms within a view", parse=not_negative)
        crld_cross: float = option(0.5, "weight of the crossed terms", parse=not_negative)
        crld_weak: float = option(
            0.9, "confidence on the weak view that those within one need", parse=share
        )
        crld_strong: float = option(
            0.2, "confidence on the strong view that the crossed ones need", parse=share
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        if any(view.regions and max(view.regions[0]) > 1 for view in setup.views):
            raise ValueError(
                "the crossed terms compare whole images, whose regions show other places in each "
                "view: leave --sdd out"
            )

    @staticmethod
    def views_per_image(options):
        return 2

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The weights that were published for single pairs on CIFAR-100."""
        pair = teacher, student
        return {"crld_within": WITHIN[pair]} if data != "imagenet" and pair in WITHIN else {}

    def forward(self, student, teacher, batch):
        o = self.options
        pairs = zip(student.views, teacher.views, strict=True)
        weak, strong = (self.rows(s, t, batch.labels) for s, t in pairs)
        within = self.losses(weak.student, weak.teacher) + self.losses(
            strong.student, strong.teacher
        )
        crossed = self.losses(strong.student, weak.teacher) + self.losses(
            weak.student, strong.teacher
        )
        within = within * (confidence(weak) >= o.crld_weak)  # (V, B)
        crossed = crossed * (confidence(strong) >= o.crld_strong)
        within, crossed = ((weak.weight * x).sum(dim=0).mean() for x in (within, crossed))
        self.parts = {"within": within.detach(), "crossed": crossed.detach()}
        return o.crld_within * within + o.crld_cross * crossed

    def losses(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T^2 * KL of each row: (V, B, K), (V, B, K) -> (V, B)"""
        loss = kl(student.flatten(0, 1), teacher.flatten(0, 1), self.options.kd_T)
        return loss.view(student.shape[:2])


def confidence(rows: Rows) -> Tensor:
    """The teacher's largest probability, of plain logits: (V, B)"""
    return F.softmax(rows.plain[1], dim=2).amax(dim=2)
