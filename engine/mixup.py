"""mixup: each image of a batch has a share of another one in it. B batch, b a process's share."""

import torch
from torch import Generator, Tensor

from engine.distributed import gather_batch, rank, share_sizes


def draw_pairs(
    alpha: float, labels: Tensor, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """What each of B samples is mixed with, (B,), and the own share of each, a scalar.

    Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018: one λ ~ Beta(alpha, alpha) a
    batch, the others in random order. The share is the larger of λ and 1 - λ, which gives the same
    mixtures and lets `labels` (B,) be those of the larger share.
    """
    n, device = len(labels), labels.device
    order = torch.rand(n, generator=generator, device=device).argsort()
    # λ is a share of two gamma variates. Those of a small alpha are below the smallest number, so
    # their logarithms are drawn: G(alpha) = G(alpha + 1) * U ** (1 / alpha).
    alphas = torch.full((2,), alpha, dtype=torch.float64, device=device)
    above = torch._standard_gamma(alphas + 1, generator=generator)  # torch.distributions takes none
    uniform = torch.rand(2, generator=generator, dtype=torch.float64, device=device)
    logs = above.log() + uniform.log() / alpha
    return order, (logs[0] - logs[1]).abs().sigmoid().float()


def mix(images: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """A process's images, each mixed with its partner: (b, 3, H, W) -> the same shape.

    `order` (B,) and `share` are those of `draw_pairs`.
    """
    n = len(order)
    own = order.split(share_sizes(n))[rank()]
    return share * images + (1 - share) * gather_batch(images, n)[own]
