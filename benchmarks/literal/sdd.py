"""SDD as the paper writes it (Wei et al., CVPR 2024) on KD, one region after the other.

B batch, C channels, H x W map, K classes.
"""

import torch
import torch.nn.functional as F


def kd(student, teacher, labels, scales, temperature):
    """Features of both networks (with `last_map` and `head`), labels (B,) -> scalar"""
    s, t = regions(student, scales), regions(teacher, scales)
    total, right = 0, t[0].argmax(dim=1) == labels
    for logit_s, logit_t in zip(s, t, strict=True):
        p, q = F.log_softmax(logit_s / temperature, dim=1), F.softmax(logit_t / temperature, dim=1)
        loss = F.kl_div(p, q, reduction="none").sum(dim=1) * temperature**2
        weight = torch.where((logit_t.argmax(dim=1) == labels) == right, 1.0, 2.0)
        total = total + (weight * loss).sum()
    return total / len(s) / len(labels)


def regions(features, scales):
    """Logits (B, K) of every region"""
    cut = []
    for scale in scales:
        size = features.last_map.shape[2] // scale
        cells = F.avg_pool2d(features.last_map, size)  # (B, C, scale, scale)
        cut += [features.head(cells[:, :, i, j]) for i in range(scale) for j in range(scale)]
    return cut
