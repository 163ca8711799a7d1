from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.base import Batch
from helper.errors import UserError
from helper.options import at_most, not_negative, option, positive, positive_number, share
from models.base import Features

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import check_class_count, mask_class
from .wkd_feature import decayed, describe_decay

EPS = 1e-8  # as published: of the cost, and of both divisions of a round
# (teacher, student) -> weight and temperature of the transport (published configurations).
TRANSPORT = {("resnet32x4", "resnet8x4"): (600.0, 8.0), ("wrn_40_2", "ShuffleV1"): (200.0, 6.0)}
# The same on ImageNet, and the sharpness of the cost.
TRANSPORT_IMAGENET = {
    ("ResNet34", "ResNet18"): (30.0, 2.0, 1.0),
    ("ResNet50", "MobileNetV1"): (25.0, 2.0, 2.0),
}


@METHODS.register("wkd_logit")
class WKDLogit(LogitDistiller):
    """Lv et al., Wasserstein Distance Rivals Kullback-Leibler Divergence, NeurIPS 2024 (WKD-L).

    Of each row -p ln q of the target, p the teacher's probability and q the student's at
    temperature 1, and what it costs to carry the student's probabilities of the other classes to
    the teacher's: both at `wkd_T`, the transport entropic (Sinkhorn). Classes are as far apart as
    the teacher sees them: the cost is 1 - exp(-wkd_sharpen * (1 - CKA)) of what it shows of two
    classes' training images, paired in the data set's order, or of the rows of its classifier.
    Relations are made once, before training. The transport's weight falls to 0 along a cosine.

    Settings of pairs that the paper does not name are those of wrn_40_2 -> ShuffleV1, on ImageNet
    those of ResNet34 -> ResNet18.
    Raises ValueError where there are fewer than three classes.
    Reference: JiamingLv/WKD, mdistiller/distillers/WKD.py and tools/.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    temperature = "wkd_T"
    reads_samples = True

    @dataclass(frozen=True)
    class Options:
        wkd_T: float = option(6.0, "temperature among the other classes", parse=positive_number)
        wkd_transport: float = option(200.0, "weight of the transport", parse=not_negative)
        wkd_reg: float = option(0.05, "entropy of the transport", parse=positive_number)
        wkd_rounds: int = option(
            10, "rounds of Sinkhorn's algorithm", parse=at_most(1000, positive)
        )
        wkd_cost: str = option(
            "map",
            "what of the teacher tells how far classes are apart: its last map or its logits (a "
            "pass over the training images before the first epoch), or its classifier",
            choices=("map", "logits", "classifier"),
        )
        wkd_sharpen: float = option(
            1.0, "how fast the cost grows with the distance; 0: it is the distance",
            parse=not_negative,
        )  # fmt: skip
        wkd_decay_from: float = option(
            0.625, "share of the epochs after which the weight falls to 0", parse=share
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        classes = setup.student.logits.shape[1]
        check_class_count(classes)
        if options.wkd_cost == "map" and setup.teacher.last_map is None:
            raise ValueError("the teacher has no last map: give --wkd_cost logits or classifier")
        cost = 1 - torch.eye(classes)  # until `prepare` knows better
        if options.wkd_cost == "classifier":
            cost = sharpened(classifier_distances(setup.teacher.head.weight), options.wkd_sharpen)
        self.register_buffer("cost", cost.detach())  # (K, K)
        self.register_buffer("share", torch.ones(()), persistent=False)  # of the weight, now

    @staticmethod
    def variant(options):
        return describe_decay("transport falls", options.wkd_decay_from)

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        pair = teacher, student
        if data == "imagenet":
            usual = TRANSPORT_IMAGENET["ResNet34", "ResNet18"]
            weight, temperature, sharpen = TRANSPORT_IMAGENET.get(pair, usual)
            own = {"wkd_transport": weight, "wkd_T": temperature, "wkd_sharpen": sharpen}
            return {**own, "wkd_cost": "logits", "wkd_decay_from": 0.0}
        if pair not in TRANSPORT:
            return {}
        weight, temperature = TRANSPORT[pair]
        return {"wkd_transport": weight, "wkd_T": temperature}

    @torch.no_grad()
    def prepare(self, teacher, images):
        if self.options.wkd_cost == "classifier":
            return
        distances = 1 - cka(rows_by_class(map(self.shown(teacher), images), len(self.cost)))
        self.cost.copy_(sharpened(distances, self.options.wkd_sharpen))

    def shown(self, teacher):
        """-> a function of a batch: the rows that relations are made of (B, P, C), its labels"""

        def rows(batch: Batch) -> tuple[Tensor, Tensor]:
            features: Features = teacher(batch)
            if self.options.wkd_cost == "logits":
                return features.logits[:, None], batch.labels
            return features.last_map.flatten(2).mT, batch.labels  # (B, H * W, C)

        return rows

    def begin(self, epoch, epochs):
        self.share.fill_(decayed(epoch, epochs, self.options.wkd_decay_from))

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        o = self.options
        target = F.softmax(teacher, dim=1).gather(1, labels[:, None])[:, 0]
        target = target * F.cross_entropy(student, labels, reduction="none")
        p, q = (F.softmax(mask_class(x / o.wkd_T, labels), dim=1) for x in (student, teacher))
        cost = self.cost.clamp_min(0) + EPS
        kernel = (-cost / o.wkd_reg).exp()  # (K, K)
        u, v = sinkhorn(p, q, kernel, labels, o.wkd_rounds)
        carried = (u @ (kernel * cost) * v).sum(dim=1)
        return target + o.wkd_transport * self.share * carried


def sinkhorn(
    p: Tensor, q: Tensor, kernel: Tensor, labels: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """The plan of each row that carries p to q is u_i * kernel_ij * v_j -> u, v, (M, K) each.

    p, q: (M, K), 0 for the row's target, as it is then in u and v: one kernel (K, K) serves all.
    """
    u = torch.full_like(p, 1 / (p.shape[1] - 1)).scatter(1, labels[:, None], 0)
    for _ in range(rounds):
        v = q / (u @ kernel + EPS)
        u = p / (v @ kernel.mT + EPS)
    return u, v


def rows_by_class(parts: Iterable[tuple[Tensor, Tensor]], classes: int) -> list[Tensor]:
    """Rows (B, P, C) of batches, labels (B,) -> the rows of each class, (n * P, C), centred.

    Samples keep their order; n is the number of the class that has fewest.
    """
    found: list = [[] for _ in range(classes)]
    for rows, labels in parts:
        for label in labels.unique().tolist():
            found[label].append(rows[labels == label])
    n = min(sum(map(len, of_class)) for of_class in found)
    if n == 0:
        raise UserError(
            "a class has no training image, so what the teacher shows of classes cannot be "
            "compared: give --wkd_cost classifier"
        )
    for label, of_class in enumerate(found):  # one at a time: all of them may take gigabytes
        rows = torch.cat(of_class)[:n].flatten(0, 1)
        found[label] = rows - rows.mean(dim=0)
    return found


def cka(rows: list[Tensor]) -> Tensor:
    """Linear CKA of each pair of K classes' centred rows (n, C) -> (K, K).

    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019.
    """
    cross = rows[0].new_zeros(len(rows), len(rows))
    for i, x in enumerate(rows):
        for j, y in enumerate(rows[: i + 1]):
            cross[i, j] = cross[j, i] = (x.mT @ y).square().sum()
    norm = cross.diagonal().sqrt()  # of each class with itself
    return cross / (norm[:, None] * norm).clamp_min(torch.finfo(norm.dtype).tiny)


def classifier_distances(weight: Tensor) -> Tensor:
    """1 - cosine of each pair of rows: (K, C) -> (K, K)"""
    unit = F.normalize(weight, dim=1)
    return 1 - unit @ unit.mT


def sharpened(distance: Tensor, sharpness: float) -> Tensor:
    """1 - exp(-sharpness * distance); the distance itself where that is 0."""
    return 1 - (-sharpness * distance).exp() if sharpness else distance
