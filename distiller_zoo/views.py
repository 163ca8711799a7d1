"""Views turn the logits of a batch into the rows that a logit method is paid for.

Each takes and returns `Rows`, so that any number of them chain in front of any method.
V views, B batch, K classes, R regions, n noisy copies.
"""

import warnings
from argparse import ArgumentTypeError
from dataclasses import dataclass

import torch
from torch import Tensor

from helper.options import (
    at_most,
    not_negative,
    option,
    positive,
    positive_number,
    share,
    whole_numbers,
)

from . import VIEWS
from .base import Distiller, LogitDistiller, Rows, View
from .noisy_teacher import NoisyTeacher, standard_normal

LARGEST_GRID = 64  # regions a side


def grid_sizes(text: str) -> tuple[int, ...]:
    """'1,2,4' or '[1,2,4]' -> (1, 2, 4)"""
    try:
        sizes = whole_numbers(text)
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] != 1 or sizes[-1] > LARGEST_GRID or sorted(set(sizes)) != list(sizes):
        raise ArgumentTypeError(
            f"{text!r} is no growing list of grid sizes from 1 to {LARGEST_GRID}: try 1,2,4"
        )
    return sizes


@VIEWS.register("sdd")
class ScaleDecoupling(View):
    """Wei et al., Scale Decoupled Distillation, CVPR 2024: one row a region.

    A region where the teacher is right and the whole image wrong, or the reverse, counts twice;
    the loss is divided by the number of regions.
    """

    order = 1
    reads_samples = True

    @dataclass(frozen=True)
    class Options:
        sdd: tuple[int, ...] = option(
            (),
            "scale decoupling: grid sizes such as 1,2,4; 1 is the image",
            "--M",
            parse=grid_sizes,
        )
        sdd_from: str = option(
            "map",
            "what the grids cut: the last map, or that pooled to 4x4 first, as the published code "
            "does (the same for maps of 4x4 and 8x8; on ImageNet's 7x7 the image's row differs)",
            choices=("map", "4x4"),
            added=True,
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.scales = options.sdd
        self.regions = self.scales, {"map": 0, "4x4": 4}[options.sdd_from]
        for who in (setup.student, setup.teacher):
            who.region_logits(*self.regions)  # ValueError without regions
            if (finest := max(self.scales)) > (least := min(who.last_map.shape[2:])):
                warnings.warn(
                    f"a last map of {least} x {least} is cut into {finest} x {finest} regions: "
                    "several of them are the same place",
                    stacklevel=2,
                )

    def __call__(self, rows, student, teacher, labels):
        s = student.region_logits(*self.regions)  # (R, B, K)
        t = teacher.region_logits(*self.regions)
        return Rows(s, t, self.weights(t, labels) / len(t))

    @staticmethod
    def weights(teacher: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, B, K) of the teacher, labels (B,) -> (R, B), each 1 or 2."""
        right = teacher.argmax(dim=2) == labels  # (R, B)
        return 1 + (right != right[0]).to(teacher.dtype)


@VIEWS.register("tekap")
class Tekap(View):
    """Hossain et al., Single Teacher, Multiple Perspectives (TeKAP), ICLR 2025: noisy teachers.

    The rows again, n times, each with its own noise on the teacher's logits. A method that reads
    features gets noise there instead.
    """

    order = 2
    wrapper = NoisyTeacher

    @dataclass(frozen=True)
    class Options:
        tekap: bool = option(False, "TeKAP: the teacher again, several times, with noise")
        tekap_copies: int = option(3, "noisy copies of the teacher", parse=at_most(1000, positive))
        tekap_noise: float = option(0.1, "share of noise in a copy", parse=share)
        tekap_weight: float = option(
            0.8, "weight of a copy; the clean teacher has 1", parse=not_negative
        )

    def __call__(self, rows, student, teacher, labels):
        n, noise = self.options.tekap_copies, self.options.tekap_noise
        plain = tuple(x.repeat(n + 1, 1, 1) for x in rows.plain)
        clean = rows.teacher.expand(n, *rows.teacher.shape)  # (n, V, B, K)
        noisy = (1 - noise) * clean + noise * standard_normal(clean, self.generator)
        return Rows(
            rows.student.repeat(n + 1, 1, 1),
            torch.cat([rows.teacher, noisy.flatten(0, 1)]),
            torch.cat([rows.weight, self.options.tekap_weight * rows.weight.repeat(n, 1)]),
            plain,
        )


@VIEWS.register("logit_stand")
class LogitStandardization(View):
    """Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024 (algorithm 1).

    Each row to mean 0 and standard deviation 1, so that the student matches relations, not scale.
    """

    order = 3

    @dataclass(frozen=True)
    class Options:
        logit_stand: bool = option(False, "standardise each row of logits first")
        base_temp: float = option(2.0, "temperature after standardising", parse=positive_number)
        kd_weight: float = option(9.0, "weight of the standardised term", parse=not_negative)

    @staticmethod
    def defaults(options, method: type[Distiller]) -> dict[str, tuple[str, float]]:
        """The paper's settings: `base_temp` is the temperature, `kd_weight` the term's weight.

        Beside a method that reads features the standardised term is KD.
        """
        on_rows = issubclass(method, LogitDistiller)
        temperature = method.temperature if on_rows else "kd_T"
        return {
            "kd_T": ("base_temp", options.base_temp),
            temperature: ("base_temp", options.base_temp),
            "beta" if on_rows and method.recipe.beta else "alpha": ("kd_weight", options.kd_weight),
        }

    def __call__(self, rows, student, teacher, labels):
        scores = z_score(rows.student), z_score(rows.teacher)
        return Rows(*scores, rows.weight, rows.plain, rows.raw)


def z_score(x: Tensor, eps: float = 1e-7) -> Tensor:
    """(..., K) -> (..., K): each row minus its mean, over its sample standard deviation + eps."""
    # The root has no slope at 0: a floor far below eps keeps the gradient of a constant row finite.
    std = x.var(dim=-1, keepdim=True).clamp_min(1e-30).sqrt()
    return (x - x.mean(dim=-1, keepdim=True)) / (std + eps)
