"""VID, literally: the negative log-likelihood of every value of the map."""

import torch
import torch.nn.functional as F


def vid(regressors, log_scales, f_s, f_t, eps=1e-5):
    """Regressors and log-scales of the stages, maps (B, C, H, W) -> scalar"""
    loss = 0.0
    for regressor, log_scale, s, t in zip(regressors, log_scales, f_s, f_t, strict=True):
        size = min(s.shape[2], t.shape[2])
        s, t = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
        variance = (torch.log(1 + torch.exp(log_scale)) + eps)[None, :, None, None]
        loss = loss + (0.5 * ((regressor(s) - t) ** 2 / variance + variance.log())).mean()
    return loss
