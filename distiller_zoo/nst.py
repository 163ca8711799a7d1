import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.adapters import to_smaller

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs, warn_of_one_place


@METHODS.register("nst")
class NST(Distiller):
    """Huang & Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017.

    Squared maximum mean discrepancy between the channels of both maps, each normalised to unit
    length, with the polynomial kernel (a . b)^2; mean over the batch, sum over the stages. The term
    of the teacher alone is part of the value and has no gradient.

    Raises ValueError where a network has no maps.
    Reference: HobbitLong/RepDistiller, distiller_zoo/NST.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=50.0)
    reads = frozenset({"stages"})

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = count_stage_pairs(setup)
        warn_of_one_place(setup, self.stages)

    def forward(self, student, teacher, batch):
        pairs = zip(student.stages[: self.stages], teacher.stages[: self.stages], strict=True)
        return sum(stage_loss(s, t) for s, t in pairs)


def stage_loss(s: Tensor, t: Tensor) -> Tensor:
    """(B, C, H, W), (B, C', H', W') -> scalar, on the smaller of the two sizes."""
    s, t = (x.flatten(2) for x in to_smaller(s, t))  # (B, C, H * W), (B, C', H * W)
    c_s, c_t, positions = s.shape[1], t.shape[1], s.shape[2]
    if c_s**2 + c_s * c_t + c_t**2 > (c_s + c_t) * positions:
        return mmd_of_positions(s, t)
    return MMDOfChannels.apply(s, t)


def mmd_of_positions(s: Tensor, t: Tensor) -> Tensor:
    """The loss by Gram matrices of positions: (B, C, D), (B, C', D) -> scalar

    The sum of (a_i . b_j)^2 over channels is the inner product of a.T @ a and b.T @ b, so the three
    terms are one square.
    """
    s, t = (F.normalize(x, dim=2) for x in (s, t))
    difference = torch.bmm(s.mT, s) / s.shape[1] - torch.bmm(t.mT, t).detach() / t.shape[1]
    return difference.square().sum() / len(s)


class MMDOfChannels(torch.autograd.Function):
    """The loss by Gram matrices of channels: (B, C, D), (B, C', D) -> scalar

    The plain form is

        s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
        ss, st, tt = s @ s.mT, s @ t.mT, t @ t.mT
        return ss.square().mean() - 2 * st.square().mean() + tt.square().mean()

    and takes 1.7 to 1.9 times as long, with 136 MB at its peak instead of 32. Normalising the
    products instead of the maps still takes 1.3 to 1.5 times as long (benchmarks/README.md). Here
    the products are normalised in place, and the gradient is one sum of products with the maps.
    """

    @staticmethod
    def forward(ctx, s, t):
        ss, st, tt = torch.bmm(s, s.mT), torch.bmm(s, t.mT), torch.bmm(t, t.mT)
        r_s, r_t = inverse_norms(ss), inverse_norms(tt)  # (B, C, 1), (B, C', 1)
        for products, left, right in ((ss, r_s, r_s), (st, r_s, r_t), (tt, r_t, r_t)):
            products.mul_(left).mul_(right.mT)  # cosines
        energy_s = ss.square().mean(dim=2, keepdim=True)  # (B, C, 1)
        energy_t = st.square().mean(dim=2, keepdim=True)
        loss = energy_s.mean() - 2 * energy_t.mean() + tt.square().mean()
        if ctx.needs_input_grad[0]:
            # d loss / d s = 4 / (B * C) * (on_s @ s - on_t @ t), where the diagonal of on_s takes
            # away the part of the gradient along each channel: normalisation has none.
            on_s = ss.mul_(r_s).mul_(r_s.mT / s.shape[1])
            on_s.diagonal(dim1=1, dim2=2).sub_(((energy_s - energy_t) * r_s.square())[..., 0])
            on_t = st.mul_(r_s).mul_(r_t.mT / t.shape[1])
            ctx.save_for_backward(s, t, on_s, on_t)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        s, t, on_s, on_t = ctx.saved_tensors
        scale = gradient * 4 / (s.shape[0] * s.shape[1])
        grad_s = torch.bmm(on_s.mul(scale), s)
        return grad_s.baddbmm_(on_t.mul(-scale), t), None


def inverse_norms(gram: Tensor) -> Tensor:
    """1 / norm of each channel, from their Gram matrix: (B, C, C) -> (B, C, 1)"""
    return gram.diagonal(dim1=1, dim2=2).clamp_min(1e-24).rsqrt()[..., None]
