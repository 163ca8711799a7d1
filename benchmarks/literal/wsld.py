"""WSLD as the paper writes it (Zhou et al., ICLR 2021), the slow way. B batch, K classes."""

import torch
import torch.nn.functional as F


def wsld(logit_s, logit_t, labels, T=4.0):
    """Soft labels weighed by sample, without the hard part: (B, K), (B, K), (B,) -> scalar."""
    at = labels[:, None]
    with torch.no_grad():
        loss_s = -F.softmax(logit_s, dim=1).gather(1, at).log()  # (B, 1)
        loss_t = -F.softmax(logit_t, dim=1).gather(1, at).log()
        weight = 1 - torch.exp(-loss_s / (loss_t + 1e-7))
    soft = -(F.softmax(logit_t / T, dim=1) * F.softmax(logit_s / T, dim=1).log())
    return T**2 * (weight * soft).sum(dim=1).mean()
