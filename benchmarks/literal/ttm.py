"""TTM and WTTM as the paper writes them (Zheng & Yang, ICLR 2024), the slow way. B batch."""

import torch.nn.functional as F


def ttm(logit_s, logit_t, labels=None, power=0.1):
    """KL from the transformed teacher: (B, K), (B, K) -> scalar."""
    p = F.softmax(logit_t, dim=1) ** power
    return F.kl_div(
        F.softmax(logit_s, dim=1).log(), p / p.sum(1, keepdim=True), reduction="batchmean"
    )


def wttm(logit_s, logit_t, labels=None, power=0.2):
    """The same, weighed by sample."""
    p = F.softmax(logit_t, dim=1) ** power
    total = p.sum(1, keepdim=True)
    kl = F.kl_div(F.softmax(logit_s, dim=1).log(), p / total, reduction="none").sum(1)
    return (total[:, 0] * kl).mean()
