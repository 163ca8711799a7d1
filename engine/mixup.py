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
    alphas = torch.full((2,), alpha, dtype=torch.float64, device=device)
    gamma = torch._standard_gamma(alphas, generator=generator)  # torch.distributions takes none
    return order, (gamma.max() / gamma.sum()).float()


def mix(images: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """A process's images, each mixed with its partner: (b, 3, H, W) -> the same shape.

    `order` (B,) and `share` are those of `draw_pairs`.
    """
    n = len(order)
    own = order.split(share_sizes(n))[rank()]
    return share * images + (1 - share) * gather_batch(images, n)[own]
