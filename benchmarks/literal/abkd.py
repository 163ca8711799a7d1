"""ABKD as the paper writes it (Wang et al., ICML 2025), the slow way. B batch, K classes."""

import torch.nn.functional as F


def abkd(logit_s, logit_t, labels=None, alpha=0.8, beta=0.3, T=4.0):
    """The alpha-beta divergence, both powers above 0: (B, K), (B, K) -> scalar."""
    p, q = F.softmax(logit_t / T, dim=1), F.softmax(logit_s / T, dim=1)
    of_each = alpha * p ** (alpha + beta) + beta * q ** (alpha + beta)
    terms = p**alpha * q**beta - of_each / (alpha + beta)
    return -terms.sum(dim=1).mean() / (alpha * beta)
