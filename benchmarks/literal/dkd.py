"""DKD as the paper writes it (Zhao et al., CVPR 2022), the slow way. B batch, K classes."""

import torch
import torch.nn.functional as F


def dkd(logit_s, logit_t, labels, target=1.0, others=8.0, T=4.0):
    """Target and other classes apart: (B, K), (B, K), (B,) -> scalar."""
    chosen = F.one_hot(labels, logit_s.shape[1]).bool()  # (B, K)
    p, q = F.softmax(logit_s / T, dim=1), F.softmax(logit_t / T, dim=1)

    def two_way(x):  # (B, K) -> (B, 2)
        return torch.stack([(x * chosen).sum(1), (x * ~chosen).sum(1)], dim=1)

    tckd = F.kl_div(two_way(p).log(), two_way(q), reduction="sum") / len(labels)
    log_p = F.log_softmax(logit_s / T - 1000 * chosen, dim=1)
    nckd = F.kl_div(log_p, F.softmax(logit_t / T - 1000 * chosen, dim=1), reduction="sum")
    return T**2 * (target * tckd + others * nckd / len(labels))
