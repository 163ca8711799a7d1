from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive

from . import METHODS
from .base import Distiller, Recipe, check_stages

MORE = 3  # vectors of the student beyond the teacher's that may be matched with them


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
    return (s - t).square().sum(dim=(1, 2)) / len(s)


def relation(front: Tensor, back: Tensor) -> Tensor:
    """(B, C, k), (B, C', k) -> (B, C, C', k): exp of minus an eighth of the squared distances."""
    return ((front[:, :, None] - back[:, None]).square() / -8).exp()


def matched(s: Tensor, t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W), (B, C, H', W') -> the student's and the teacher's vectors, (B, C, k) each.

    To each of the teacher's comes the student's that is most along it, turned to its sign; both
    are as long as the teacher's singular value, in units of all k of them.
    """
    v_s, _ = right_vectors(s, k + MORE)
    v_t, strength = right_vectors(t, k)
    cosine = v_s.detach().mT @ v_t  # (B, k + 3, k)
    best = cosine.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(cosine.gather(1, best) < 0, -1.0, 1.0).to(t.dtype)  # (B, 1, k)
    v_s = v_s.gather(2, best.expand(-1, v_s.shape[1], -1))
    length = F.normalize(strength, dim=1)[:, None]
    return v_s * sign * length, v_t * length


def right_vectors(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n strongest right singular vectors of each map as (H * W, C), and their singular values.

    (B, C, H, W) -> (B, C, n), (B, n); fewer where the map has fewer.
    """
    x = x.flatten(2)  # (B, C, H * W)
    by_position = x.shape[1] > x.shape[2]
    vectors, values = eigenvectors_of_gram(x.mT if by_position else x, n)
    if by_position:  # those of the other Gram matrix, brought over
        vectors = F.normalize(x @ vectors, dim=1)
    sign = torch.where(vectors.detach().sum(dim=1, keepdim=True) < 0, -1.0, 1.0).to(x.dtype)
    return vectors * sign, values.clamp_min(0).sqrt()


def eigenvectors_of_gram(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of x @ x.T, the n largest first: (B, M, D) -> (B, M, n), and eigenvalues (B, n).

    What comes out is constant but for its first-order change with x, which gives these n vectors
    their gradient and costs no other one. Vectors whose eigenvalues nearly coincide may turn into
    each other at will: there the gradient tends to 0 where that of the plain formula is infinite.
    """
    fixed = x.detach()
    values, vectors = torch.linalg.eigh(fixed @ fixed.mT)  # (B, M), (B, M, M), rising
    top, values_top = vectors[:, :, -n:].flip(2), values[:, -n:].flip(1)  # (B, M, n), (B, n)
    if x.requires_grad:
        gap = values_top[:, None] - values[:, :, None]  # (B, M, n)
        blur = torch.finfo(x.dtype).eps ** (2 / 3) * values_top[:, :1, None] + 1e-30
        change = vectors.mT @ (x @ (x.mT @ top))  # (B, M, n)
        change = vectors @ (change * (gap / (gap.square() + blur.square())))
        top = top + (change - change.detach())
    return top, values_top
