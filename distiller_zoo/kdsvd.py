from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive

from . import METHODS
from .base import Distiller, Recipe, count_stage_pairs

EXTRA = 3  # vectors of the student, beyond the teacher's k, that may be matched with them


@METHODS.register("kdsvd")
class KDSVD(Distiller):
    """Lee et al., Self-supervised Knowledge Distillation Using SVD, ECCV 2018.

    A stage is represented by the k strongest right singular vectors of its map as a matrix
    (H * W, C). Each of the teacher's is matched with the student's vector of largest |cosine|. Two
    adjacent stages are related by a radial basis function of every two entries of their vectors;
    the loss is the squared difference of the student's and the teacher's relations, summed over
    entries, vectors and stages, mean over the batch.

    The sign of a singular vector is arbitrary and the relation depends on it: here the entries of
    each vector of the teacher sum to at least 0, as those of the strongest vector of a map after
    ReLU do in any case.

    Raises ValueError where the networks' stages differ in channels or there are fewer than two, and
    where the teacher's smallest map has fewer than k singular vectors.
    Reference: HobbitLong/RepDistiller, distiller_zoo/KDSVD.py (with the signs that LAPACK gives).
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"stages"})
    capturable = False  # the host reads whether the eigendecomposition converged

    @dataclass(frozen=True)
    class Options:
        kdsvd_k: int = option(1, "singular vectors of the teacher a stage", parse=positive)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.stages = count_stage_pairs(setup)
        s, t = (
            [x.shape[1] for x in f.stages[: self.stages]] for f in (setup.student, setup.teacher)
        )
        if s != t or len(s) < 2:
            shapes = " and ".join(
                f"the {who}'s {', '.join(str(tuple(x.shape[1:])) for x in features.stages)}"
                for who, features in (("student", setup.student), ("teacher", setup.teacher))
            )
            raise ValueError(
                f"kdsvd needs two stages or more with equal channels, and got {shapes}: choose a "
                "student with the teacher's channels, or --distill vid, which brings its own"
            )
        smallest = min(setup.teacher.stages[: self.stages], key=rank)
        if options.kdsvd_k > rank(smallest):
            raise ValueError(
                f"--kdsvd_k {options.kdsvd_k} is more than the {rank(smallest)} singular vectors "
                f"that the teacher's map {tuple(smallest.shape[1:])} has: give no more"
            )

    def forward(self, student, teacher, batch):
        pairs = zip(student.stages[: self.stages], teacher.stages[: self.stages], strict=True)
        stages = [matched_vectors(s, t, self.options.kdsvd_k) for s, t in pairs]
        return sum(adjacent_loss(*two).sum() for two in pairwise(stages))


def rank(x: Tensor) -> int:
    """How many singular vectors maps (B, C, H, W) have as matrices (H * W, C)."""
    return min(x.flatten(2).shape[1:])


def adjacent_loss(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Loss of two adjacent stages: student's and teacher's vectors (B, C, k) of both -> (B, k).

    Divided by B already: the sum over samples and vectors is the loss.
    """
    s, t = (rbf(a, b) for a, b in zip(first, second, strict=True))  # (B, k, C, C')
    return (s - t).square().sum(dim=(2, 3)) / len(s)


def rbf(a: Tensor, b: Tensor) -> Tensor:
    """exp(-(a_i - b_j)^2 / 8) of all entries: (B, C, k), (B, C', k) -> (B, k, C, C')

    The square is a sum of three products, so one matrix product gives all of them.
    """
    a, b = a.mT[..., None], b.mT[..., None]  # (B, k, C, 1), (B, k, C', 1)
    left = torch.cat([a.square(), torch.ones_like(a), a], dim=3)
    right = torch.cat([torch.ones_like(b), b.square(), -2 * b], dim=3) / -8
    return (left @ right.mT).exp_()


def matched_vectors(s: Tensor, t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W), (B, C, H', W') -> student's and teacher's vectors, (B, C, k) each.

    Row i of either side belongs to the teacher's i-th vector; the student's has its sign. Both are
    scaled by the teacher's i-th singular value over the norm of all k.
    """
    teacher, student = SingularVectors(t, k), SingularVectors(s, k + EXTRA)
    v_t = teacher.vectors * sign(teacher.vectors.sum(dim=2, keepdim=True))
    cosine = v_t @ student.vectors.mT  # (B, k, k + EXTRA)
    best = cosine.abs().argmax(dim=2, keepdim=True)  # (B, k, 1)
    v_s = student.differentiable(best) * sign(cosine.gather(2, best))
    scale = F.normalize(teacher.values, dim=1)[:, :, None]
    return (v_s * scale).mT, (v_t * scale).mT


def sign(x: Tensor) -> Tensor:
    """-1 or 1, never 0."""
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


class SingularVectors:
    """The n strongest right singular vectors of maps (B, C, H, W) as matrices (H * W, C).

    `vectors` (B, n, C) and their singular values `values` (B, n), the largest first, without a
    gradient; fewer than n where a map has fewer. They come from the eigendecomposition of the
    smaller Gram matrix: M is the smaller of C and H * W, D the larger.
    """

    def __init__(self, x: Tensor, n: int):
        x = x.flatten(2)  # (B, C, H * W)
        self.over_positions = x.shape[1] > x.shape[2]
        self.x = x.mT if self.over_positions else x  # (B, M, D)
        fixed = self.x.detach()
        # (B, M), smallest first, and (B, M, M), an eigenvector a row
        self.eigenvalues, basis = torch.linalg.eigh(fixed @ fixed.mT)
        self.basis = basis.mT
        self.top = self.basis[:, -n:].flip(1)  # (B, n, M)
        self.vectors = self.over_channels(self.top, fixed)
        self.values = self.eigenvalues[:, -n:].flip(1).clamp_min(0).sqrt()

    def over_channels(self, eigenvectors: Tensor, x: Tensor) -> Tensor:
        """Eigenvectors (B, k, M) of the Gram matrix of x (B, M, D) -> (B, k, C)"""
        return F.normalize(eigenvectors @ x, dim=2) if self.over_positions else eigenvectors

    def differentiable(self, index: Tensor) -> Tensor:
        """The vectors of an index (B, k, 1) with their gradient -> (B, k, C)

        First-order change of eigenvector v_i with the Gram matrix G = x x^T:
        sum over j of u_j (u_j^T dG v_i) / (l_i - l_j). The gradient of `eigh` would be for all M
        vectors and infinite where two eigenvalues coincide; here it tends to 0 there.
        """
        v = self.top.gather(1, index.expand(-1, -1, self.top.shape[2]))  # (B, k, M)
        eigenvalue = self.eigenvalues.flip(1)[:, :, None].gather(1, index)  # (B, k, 1)
        per_gap = inverse_gaps(eigenvalue, self.eigenvalues[:, None])  # (B, k, M)
        product = (v @ self.x) @ self.x.mT  # v^T G, (B, k, M)
        change = product - product.detach()  # zero in value
        v = v + (change @ self.basis.mT * per_gap) @ self.basis
        return self.over_channels(v, self.x)


def inverse_gaps(chosen: Tensor, every: Tensor) -> Tensor:
    """1 / (l_i - l_j), near 0 for nearly equal ones: (B, k, 1), (B, 1, M) ascending -> (B, k, M)"""
    eps, tiny = torch.finfo(every.dtype).eps, torch.finfo(every.dtype).tiny
    largest = every[..., -1:].clamp_min(tiny / eps)
    gap = (chosen - every) / largest
    return gap / (gap.square() + eps ** (4 / 3)) / largest
