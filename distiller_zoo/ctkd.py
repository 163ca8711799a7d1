import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helper.options import not_negative, option, positive, positive_number

from . import VIEWS
from .base import LogitDistiller, Rows, View


@VIEWS.register("ctkd")
class CurriculumTemperature(View):
    """Li et al., Curriculum Temperature for Knowledge Distillation (CTKD), AAAI 2023: learned T.

    T = ctkd_start + ctkd_range * sigmoid(theta), theta 1 at first and trained with the student. Its
    gradient is multiplied by a factor that goes from 0 to -1 over `ctkd_loops` epochs: in the end
    it makes distillation as hard as it can. One temperature for all samples (the global version).

    In front of a loss that is T^2 times a function of logits over T, whose own T is then 1: the
    rows are divided by T, and count T^2 times. Other methods on logits are refused.
    Reference: zhengli97/CTKD, models/temp_global.py and helper/loops.py.
    """

    order = 4

    @dataclass(frozen=True)
    class Options:
        ctkd: bool = option(False, "learn the temperature, against the student")
        ctkd_start: float = option(1.0, "smallest temperature", parse=positive_number)
        ctkd_range: float = option(20.0, "largest one, less the smallest", parse=not_negative)
        ctkd_loops: int = option(10, "epochs until it is wholly against", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.theta = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("factor", torch.zeros(()), persistent=False)

    @staticmethod
    def defaults(options, method):
        """The loss's own temperature is 1, and its weight has no warm-up."""
        on_rows = issubclass(method, LogitDistiller) and method.recipe.warmup
        return {"kd_T": ("ctkd", 1.0), **({"warmup": ("", 0)} if on_rows else {})}

    @staticmethod
    def refuses(method):
        if not issubclass(method, LogitDistiller) or method.one_temperature:
            return ""
        return (
            "it learns the T of a loss that is T^2 times a function of logits over T, as those of "
            "kd and dkd are, and KD's beside a method that reads features"
        )

    def begin(self, epoch, epochs):
        self.factor.fill_(reversal(epoch, self.options.ctkd_loops))

    @property
    def temperature(self) -> Tensor:
        """(), whose gradient on theta is multiplied by the factor."""
        theta = self.theta.detach() + self.factor * (self.theta - self.theta.detach())
        return self.options.ctkd_start + self.options.ctkd_range * theta.sigmoid()

    def __call__(self, rows, student, teacher, labels):
        T = self.temperature
        self.parts = {"ctkd_temperature": T.detach()}
        return Rows(rows.student / T, rows.teacher / T, rows.weight * T**2, rows.plain, rows.raw)


def reversal(epoch: int, loops: int) -> float:
    """Factor of the gradient in an epoch counted from 1: from 0 along a cosine to -1 at `loops`."""
    return (math.cos(math.pi * min(epoch, loops) / loops) - 1) / 2
