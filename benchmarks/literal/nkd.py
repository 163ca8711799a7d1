"""NKD as the paper writes it (Yang et al., ICCV 2023), the slow way. B batch, K classes."""

import torch
import torch.nn.functional as F


def nkd(logit_s, logit_t, labels, gamma=1.5, T=1.0, drop_target=True):
    """Target and normalised non-target loss: (B, K), (B, K), (B,) -> scalar."""
    at = labels[:, None]
    s, t = F.softmax(logit_s, dim=1).gather(1, at), F.softmax(logit_t, dim=1).gather(1, at)
    target = -(t * s.log()).mean()
    if drop_target:
        others = ~F.one_hot(labels, logit_s.shape[1]).bool()  # (B, K)
        logit_s, logit_t = (x[others].view(len(labels), -1) for x in (logit_s, logit_t))
    p, q = F.softmax(logit_s / T, dim=1), F.softmax(logit_t / T, dim=1)
    return target - gamma * T**2 * (q * torch.log(p)).sum(dim=1).mean()
