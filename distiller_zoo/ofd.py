import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import at_most, option, positive
from models.base import he_init

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs

IMAGENET = (("ResNet34", "ResNet18"), ("ResNet50", "MobileNetV1"))  # pairs: teacher, student
WEIGHT_IMAGENET = 1e-4
MIN_PROBABILITY = 0.001  # of a negative value, below which the margin is -3 standard deviations


@METHODS.register("ofd")
class OFD(Distiller):
    """Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019.

    Partial L2 distance between the student's pre-activations, through a connector, and the
    teacher's after a margin ReLU, max(x, margin): positions where the teacher is not positive and
    the student is below the target have no loss. The margin of a channel is the mean of its
    BatchNorm's output where that is negative. Summed over the map, mean over the batch; each stage
    weighs half of the next deeper one; of unequal numbers of stages the last ones are paired.

    As in the published code the teacher's BatchNorm normalises by the batch (`--ofd_teacher eval`:
    by its stored statistics, which stay as they are in any case).

    Raises ValueError where a network has no maps, or the teacher no BatchNorm before them.
    Reference: megvii-research/mdistiller, mdistiller/distillers/OFD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=0.001)
    reads = frozenset({"preacts"})

    @dataclass(frozen=True)
    class Options:
        ofd_kernel: int = option(
            1, "size of the connectors' convolution", parse=at_most(99, positive)
        )
        ofd_teacher: str = option(
            "train",
            "the teacher's BatchNorm: statistics of the batch (train, as published) or stored ones",
            choices=("train", "eval"),
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = count_stage_pairs(setup, from_last=True)
        pairs = zip(self.last(setup.student.preacts), self.last(setup.teacher.preacts))
        self.connectors = nn.ModuleList(
            connector(s.shape[1], t.shape[1], options.ofd_kernel) for s, t in pairs
        )
        for i, norm in enumerate(self.last(setup.teacher_net.preact_norms())):
            self.register_buffer(f"margin_{i}", margin(norm.weight, norm.bias))

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """The published weight and batch for ImageNet's pairs."""
        if data != "imagenet" or (teacher, student) not in IMAGENET:
            return {}
        return {"beta": WEIGHT_IMAGENET, "batch_size": 128}

    @property
    def teacher_mode(self):
        return self.options.ofd_teacher

    def last(self, of_stages: Sequence) -> Sequence:
        """What belongs to the stages that are paired, the last ones."""
        return of_stages[len(of_stages) - self.stages :]

    def forward(self, student, teacher, batch):
        margins = [getattr(self, f"margin_{i}") for i in range(self.stages)]
        connected = [f(s) for f, s in zip(self.connectors, self.last(student.preacts))]
        return ofd_loss(connected, self.last(teacher.preacts), margins)


def connector(c_s: int, c_t: int, kernel: int) -> nn.Sequential:
    """1x1 (or larger) convolution and BatchNorm: (B, C, H, W) -> (B, C', H, W)

    The convolution starts N(0, 2 / fan out), BatchNorm 1 and 0.
    """
    convolution = nn.Conv2d(c_s, c_t, kernel, padding=kernel // 2, bias=False)
    layers = nn.Sequential(convolution, nn.BatchNorm2d(c_t))
    he_init(layers)
    return layers


def margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of N(bias, weight^2) given that it is negative: (C,), (C,) -> (1, C, 1, 1)

    -3 standard deviations where a negative value has a probability below 0.001. A weight of 0 gives
    the bias where that is negative, else 0.
    """
    mean, std = bias.detach().double(), weight.detach().double().abs()
    ratio = mean / std.clamp_min(1e-12)
    log_prob = torch.special.log_ndtr(-ratio)
    # sqrt(2 pi) * density / probability, in logarithms: both underflow together
    hazard = (-0.5 * ratio.square() - 0.5 * math.log(2 * math.pi) - log_prob).exp()
    below = mean - std * hazard.where(std > 0, torch.zeros_like(std))
    values = torch.where(log_prob.exp() > MIN_PROBABILITY, below, -3 * std)
    return values.to(weight.dtype)[None, :, None, None]


def ofd_loss(student: list[Tensor], teacher: list[Tensor], margins: list[Tensor]) -> Tensor:
    """Connected student, teacher: pre-activations (B, C, H, W); margins (1, C, 1, 1) -> scalar"""
    loss, last = 0.0, len(student) - 1
    for i, (s, t, margin) in enumerate(zip(student, teacher, margins, strict=True)):
        if t.shape[2:] != s.shape[2:]:
            t = F.adaptive_avg_pool2d(t, s.shape[2:])
        loss = loss + partial_l2(s, t, margin) / 2 ** (last - i)
    return loss


def partial_l2(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    """(B, C, H, W), (B, C, H, W), (1, C, 1, 1) -> scalar, summed over a map, mean over B"""
    t = torch.maximum(t, margin)
    active = (s > t) | (t > 0)
    return ((s - t) * active).square().sum() / len(s)
