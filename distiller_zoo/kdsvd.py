from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from helper.options import option, positive

from . import METHODS
from .base import Distiller, Recipe, check_stages

MORE = 3  # vectors of the student beyond the teacher's that may be matched with them
SQUARINGS = 7  # the 128th power
ROUNDING = 32  # units of rounding that a vector may be off


@METHODS.register("kdsvd")
class KDSVD(Distiller):
    """Lee et al., Self-supervised Knowledge Distillation Using SVD, ECCV 2018.

    The strongest right singular vectors of each stage's map (one entry a channel), the student's
    matched with the teacher's; between neighbouring stages, a radial basis function of each two
    entries. Squared differences of the student's and the teacher's, summed over entries, vectors
    and stages, mean over the batch.

    A singular vector has no sign, and the function depends on it: here its entries sum to at least
    0, which the strongest vector of a map after ReLU does in any case.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)

    @dataclass(frozen=True)
    class Options:
        kdsvd_k: int = option(1, "singular vectors of the teacher a stage", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = check_stages(setup)
        s, t = (
            [x.shape[1] for x in f.stages[: self.stages]] for f in (setup.student, setup.teacher)
        )
        if s != t or len(s) < 2:
            shapes = " and ".join(
                f"the {who}'s {', '.join(str(tuple(x.shape[1:])) for x in shown.stages)}"
                for who, shown in (("student", setup.student), ("teacher", setup.teacher))
            )
            raise ValueError(
                f"kdsvd needs two stages or more with equal channels, and got {shapes}: choose a "
                "student with the teacher's channels, or --distill vid, which brings its own"
            )

    def forward(self, student, teacher, batch):
        pairs = zip(student.stages[: self.stages], teacher.stages[: self.stages], strict=True)
        stages = [matched(s, t, self.options.kdsvd_k) for s, t in pairs]
        return sum(between(*two).sum() for two in zip(stages[:-1], stages[1:], strict=True))


def between(front: Sequence[Tensor], back: Sequence[Tensor]) -> Tensor:
    """Cost of each sample and vector; its sum is the loss of two neighbouring stages.

    The student's and the teacher's vectors of both stages, (B, C, k) each -> (B, k).
    """
    s, t = (relation(f, b) for f, b in zip(front, back, strict=True))
    return (s - t).square().sum(dim=(2, 3)) / len(s)


def relation(front: Tensor, back: Tensor) -> Tensor:
    """(B, C, k), (B, C', k) -> (B, k, C, C'): exp of minus an eighth of the squared distances.

    The square of a difference is a sum of three products: one matrix product makes them all.
    """
    a, b = front.mT[..., None], back.mT[..., None]  # (B, k, C, 1), (B, k, C', 1)
    left = torch.cat([a.square(), torch.ones_like(a), a], dim=3)
    right = torch.cat([torch.ones_like(b), b.square(), -2 * b], dim=3) / -8
    return (left @ right.mT).exp_()


def matched(s: Tensor, t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W), (B, C, H', W') -> the student's and the teacher's vectors, (B, C, k) each.

    To each of the teacher's comes the student's that is most along it, turned to its sign; both
    are as long as the teacher's singular value, in units of all k of them.
    """
    v_t, strength = strongest(t, k)
    student = Decomposition(s, k + MORE)
    v_t = v_t * sign(v_t.sum(dim=2, keepdim=True))
    cosine = v_t @ student.vectors.mT  # (B, k, k + 3)
    best = cosine.abs().argmax(dim=2, keepdim=True)  # (B, k, 1)
    v_s = student.with_gradient(best) * sign(cosine.gather(2, best))
    length = F.normalize(strength, dim=1)[:, :, None]
    return (v_s * length).mT, (v_t * length).mT


@torch.no_grad()
def strongest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) -> their k strongest vectors (B, k, C) and singular values (B, k).

    The strongest alone is what squaring the Gram matrix again and again leaves: on a CPU in half
    the time of all of them. Where it is not left alone, two being nearly as strong, all are found.
    """
    if k == 1 and x.device.type == "cpu":
        flat = x.flatten(2)  # (B, C, H * W)
        by_position = flat.shape[1] > flat.shape[2]
        small = flat.mT if by_position else flat  # (B, M, D)
        gram = small @ small.mT
        top = power_iterated(gram)  # (B, M, 1)
        turned = gram @ top
        value = (top * turned).sum(dim=1)  # (B, 1)
        off = (turned - value[:, None] * top).norm(dim=1)
        if (off <= ROUNDING * torch.finfo(x.dtype).eps * value).all():
            vectors = F.normalize(top.mT @ small, dim=2) if by_position else top.mT
            return vectors, value.clamp_min(0).sqrt()
    found = Decomposition(x, k)
    return found.vectors, found.strength


def power_iterated(gram: Tensor) -> Tensor:
    """Gram matrices (B, M, M) to a high power -> the vectors of length 1 left of them (B, M, 1)."""

    def in_units_of_its_trace(a):
        trace = a.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(torch.finfo(a.dtype).tiny)
        return a / trace[:, None, None]

    power = in_units_of_its_trace(gram)
    for _ in range(SQUARINGS):
        power = in_units_of_its_trace(power @ power)
    largest = power.diagonal(dim1=1, dim2=2).argmax(dim=1)[:, None, None]  # (B, 1, 1)
    column = power.gather(2, largest.expand(-1, power.shape[1], 1))
    return F.normalize(gram @ F.normalize(column, dim=1), dim=1)


def sign(x: Tensor) -> Tensor:
    """-1 or 1, never 0."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


class Decomposition:
    """The n strongest right singular vectors of maps (B, C, H, W) as matrices (H * W, C).

    `vectors` (B, n, C) and `strength` (B, n), their singular values, are constants; where a map has
    fewer, there are fewer. M is the smaller of C and H * W, D the larger.
    """

    def __init__(self, x: Tensor, n: int):
        x = x.flatten(2)  # (B, C, H * W)
        self.by_position = x.shape[1] > x.shape[2]
        self.x = x.mT if self.by_position else x  # (B, M, D)
        fixed = self.x.detach()
        # (B, M) and (B, M, M): of the smaller Gram matrix, the strongest last
        self.values, self.basis = torch.linalg.eigh(fixed @ fixed.mT)
        self.top = self.basis[:, :, -n:].flip(2).mT.contiguous()  # (B, n, M)
        self.vectors = self.over_channels(fixed, self.top)
        self.strength = self.values[:, -n:].flip(1).clamp_min(0).sqrt()

    def over_channels(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Eigenvectors (B, k, M) of the smaller Gram matrix -> (B, k, C)"""
        return F.normalize(vectors @ x, dim=2) if self.by_position else vectors

    def with_gradient(self, index: Tensor) -> Tensor:
        """The vectors of an index (B, k, 1), with the gradient of these alone -> (B, k, C)"""
        top = self.top.gather(1, index.expand(-1, -1, self.top.shape[2]))  # (B, k, M)
        gap = self.values.flip(1)[:, :, None].gather(1, index) - self.values[:, None]  # (B, k, M)
        # Vectors whose singular values nearly coincide turn into each other at will. There the
        # gradient tends to 0, where that of the plain formula is infinite.
        eps, tiny = torch.finfo(gap.dtype).eps, torch.finfo(gap.dtype).tiny
        largest = self.values[:, -1, None, None].clamp_min(tiny / eps)
        gap = gap / largest
        per_gap = gap / (gap.square() + eps ** (4 / 3)) / largest
        return self.over_channels(self.x, Eigenvectors.apply(self.x, self.basis, top, per_gap))


class Eigenvectors(torch.autograd.Function):
    """Some eigenvectors of x @ x.T, found before, and their first-order change with x (B, M, D).

    All of them are in `basis` (B, M, M), the chosen ones in `top` (B, k, M); `per_gap` (B, k, M) is
    1 over how much larger the eigenvalue of a chosen one is. By hand, since that of `eigh` is for
    all vectors at once and divides by zero where two eigenvalues coincide.
    """

    @staticmethod
    def forward(ctx, x, basis, top, per_gap):
        ctx.save_for_backward(x, basis, top, per_gap)
        return top.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, basis, top, per_gap = ctx.saved_tensors
        turn = ((gradient @ basis) * per_gap) @ basis.mT  # (B, k, M)
        left, right = torch.cat([top, turn], dim=1), torch.cat([turn, top], dim=1)
        return left.mT @ (right @ x), None, None, None
