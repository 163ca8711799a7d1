from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive_number
from models.adapters import to_smaller

from . import METHODS
from .base import Distiller, Recipe, check_stages


@METHODS.register("vid")
class VID(Distiller):
    """Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019 (eq. 4-6).

    The teacher's map given the student's is Gaussian: mean from three 1x1 convolutions of the
    student's map, one variance a channel. Negative log-likelihood without its constant, mean over
    the map, sum over the stages.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        vid_variance: float = option(5.0, "variance to start with", parse=positive_number)
        vid_eps: float = option(1e-5, "least variance", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = check_stages(setup)
        self.likelihoods = nn.ModuleList(
            Likelihood(s.shape[1], t.shape[1], options.vid_variance, options.vid_eps)
            for s, t in zip(setup.student.stages, setup.teacher.stages, strict=False)
        )

    def forward(self, student, teacher, batch):
        stages = student.stages[: self.stages], teacher.stages[: self.stages]
        parts = zip(self.likelihoods, *stages, strict=True)
        return sum(likelihood(s, t) for likelihood, s, t in parts)


class Likelihood(nn.Module):
    """Of one stage of the teacher given the student's."""

    def __init__(self, c_s: int, c_t: int, variance: float, eps: float):
        super().__init__()
        self.eps = eps
        self.regressor = nn.Sequential(
            nn.Conv2d(c_s, c_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
        )
        start = torch.tensor(max(variance - eps, eps)).double().expm1().log().float()
        self.log_scale = nn.Parameter(start.repeat(c_t))  # variance = softplus of it, plus eps

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B, C', H', W') -> scalar, on the smaller of the two sizes."""
        s, t = to_smaller(s, t)
        mean = self.regressor(s.contiguous(memory_format=torch.channels_last))
        variance = F.softplus(self.log_scale) + self.eps  # (C',)
        # The map's part of a channel's mean is one number: divide by the variance after it.
        error = (mean - t).square().mean(dim=(0, 2, 3))  # (C',)
        return 0.5 * (error / variance + variance.log()).mean()
