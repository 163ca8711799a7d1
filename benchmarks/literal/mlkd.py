"""MLKD as the paper writes it (Jin et al., CVPR 2023), one level and temperature after another.

B batch, K classes. Cross-entropy is left out; the shares are those of the published code.
"""

import numpy as np
import torch.nn.functional as F


def mlkd(s_weak, t_weak, s_strong, t_strong, T=4.0, instance=lambda x: x):
    """Logits (B, K) of two augmentations -> scalar; `instance` prepares those of the KL."""
    q = F.softmax(t_weak, dim=1)
    confidence, frequency = q.max(dim=1).values.numpy(), q.sum(dim=0).numpy()
    sample_share = (confidence <= np.percentile(confidence, 50)).mean()
    class_share = (frequency <= np.percentile(frequency, 50)).mean()

    total = 0
    for n, temperature in enumerate([T, 3.0, 5.0, 2.0, 6.0]):
        weak, strong = (
            (instance(s_weak), instance(t_weak)),
            (instance(s_strong), instance(t_strong)),
        )
        # The published code takes the weak view for the strong one at the last two temperatures.
        total = total + sample_share * kd(*weak, temperature)
        total = total + kd(*(strong if n < 3 else weak), temperature)
        total = total + class_share * classes(s_weak, t_weak, temperature)
        total = total + sample_share * samples(s_weak, t_weak, temperature)
    return total


def kd(s, t, T):
    """(B, K), (B, K) -> scalar"""
    log_p, q = F.log_softmax(s / T, dim=1), F.softmax(t / T, dim=1)
    return T**2 * F.kl_div(log_p, q, reduction="none").sum(1).mean()


def classes(s, t, T):
    """(B, K), (B, K) -> scalar"""
    p, q = F.softmax(s / T, dim=1), F.softmax(t / T, dim=1)
    return ((p.T @ p - q.T @ q) ** 2).sum() / p.shape[1]


def samples(s, t, T):
    """(B, K), (B, K) -> scalar"""
    p, q = F.softmax(s / T, dim=1), F.softmax(t / T, dim=1)
    return ((p @ p.T - q @ q.T) ** 2).sum() / p.shape[0]
