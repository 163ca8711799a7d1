"""CRLD as its published code writes it (Zhang et al., ACM MM 2024). B batch, K classes."""

import torch.nn.functional as F


def crld(s_weak, t_weak, s_strong, t_strong, T=4.0, within=2.0, cross=0.5, weak=0.9, strong=0.2):
    """Logits (B, K) of either network on either view -> scalar."""
    sure_weak = F.softmax(t_weak, dim=1).max(dim=1)[0].ge(weak)
    sure_strong = F.softmax(t_strong, dim=1).max(dim=1)[0].ge(strong)
    loss = within * (kd(s_weak, t_weak, T) * sure_weak).mean()
    loss = loss + within * (kd(s_strong, t_strong, T) * sure_weak).mean()
    loss = loss + cross * (kd(s_strong, t_weak, T) * sure_strong).mean()
    return loss + cross * (kd(s_weak, t_strong, T) * sure_strong).mean()


def kd(s, t, T):
    """(B, K), (B, K) -> (B,)"""
    log_p, q = F.log_softmax(s / T, dim=1), F.softmax(t / T, dim=1)
    return F.kl_div(log_p, q, reduction="none").sum(dim=1) * T**2
