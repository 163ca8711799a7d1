"""Deep mutual learning as its paper writes it (Zhang et al., CVPR 2018, eq. 1 to 8). B batch, K
classes."""

import torch
import torch.nn.functional as F


def dml(logit_1, logit_2):
    """KL(p_2 || p_1), what the first network learns of the second: (B, K), (B, K) -> scalar"""
    p_1, p_2 = F.softmax(logit_1, dim=1), F.softmax(logit_2, dim=1).detach()
    return (p_2 * torch.log(p_2 / p_1)).sum() / len(logit_1)


def both(logit_1, logit_2, labels):
    """The losses of both networks, L_1 and L_2, with labels (B,) -> two scalars"""
    pairs = (logit_1, logit_2), (logit_2, logit_1)
    return [F.cross_entropy(own, labels) + dml(own, other) for own, other in pairs]
