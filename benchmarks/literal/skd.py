"""SKD as its published code computes it (CVPR 2026), the slow way. B batch, K classes."""

import torch
import torch.nn.functional as F


def kd(logit_s, logit_t, T):
    """(B, K), (B, K) -> scalar"""
    p, q = F.log_softmax(logit_s / T, dim=1), F.softmax(logit_t / T, dim=1)
    return T**2 * F.kl_div(p, q, reduction="batchmean")


def direction(logit_s, logit_t, tik, divide=True):
    """Mahalanobis lengths of the differences of similarities: (B, K), (B, K) -> scalar"""
    s, t = F.normalize(logit_s, dim=1), F.normalize(logit_t, dim=1)
    d = (s @ s.T - t @ t.T) / (logit_s.shape[1] if divide else 1)
    metric = torch.linalg.inv(torch.cov(d.T) + tik * torch.eye(len(d), device=d.device).to(d))
    return torch.stack([(row @ metric @ row).sqrt() for row in d]).mean()


def skd(logit_s, logit_t, labels=None, T=4.0, tik=0.1):
    """Both parts, each by the share of its mask: (B, K), (B, K) -> scalar"""
    q = F.softmax(logit_t, dim=1)
    confidence, total = q.max(dim=1).values, q.sum(dim=0)
    samples = (confidence <= confidence.quantile(0.5)).to(q).mean()
    classes = (total <= total.quantile(0.5)).to(q).mean()
    return samples * kd(logit_s, logit_t, T) + classes * direction(logit_s, logit_t, tik)
