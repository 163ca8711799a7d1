from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.options import option, positive_number
from models.adapters import to_smaller

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs


@METHODS.register("vid")
class VID(Distiller):
    """Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019 (eq. 4-6).

    Negative log-likelihood of the teacher's map given the student's, without its constant; mean
    over the batch and the map, sum over the stages. The distribution is Gaussian. Its mean comes
    from three 1x1 convolutions of the student's map, and each channel has a trained variance.

    Raises ValueError where a network has no maps.
    Reference: HobbitLong/RepDistiller, distiller_zoo/VID.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"stages"})

    @dataclass(frozen=True)
    class Options:
        vid_variance: float = option(5.0, "variance to start with", parse=positive_number)
        vid_eps: float = option(1e-5, "least variance", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = count_stage_pairs(setup)
        self.likelihoods = nn.ModuleList(
            Likelihood(s.shape[1], t.shape[1], options.vid_variance, options.vid_eps)
            for s, t in zip(setup.student.stages, setup.teacher.stages, strict=False)
        )

    def forward(self, student, teacher, batch):
        stages = student.stages[: self.stages], teacher.stages[: self.stages]
        triples = zip(self.likelihoods, *stages, strict=True)
        return sum(likelihood(s, t) for likelihood, s, t in triples)


class Likelihood(nn.Module):
    """Gaussian distribution of the teacher's map of one stage given the student's.

    `variance` is that at the start, `eps` the least one.
    """

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
        least = torch.tensor(max(variance - eps, eps)).double()
        start = (least + (-(-least).expm1()).log()).float()  # log(exp(x) - 1), for any x
        self.log_scale = nn.Parameter(start.repeat(c_t))  # variance = softplus of it, plus eps

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """Negative log-likelihood on the smaller of both sizes.

        (B, C, H, W), (B, C', H', W') -> scalar
        """
        s, t = to_smaller(s, t)
        mean = self.regressor(s.contiguous(memory_format=torch.channels_last))
        variance = F.softplus(self.log_scale) + self.eps  # (C',)
        # All positions of a channel have one variance: divide their mean.
        error = (mean - t).square().mean(dim=(0, 2, 3))  # (C',)
        return 0.5 * (error / variance + variance.log()).mean()
