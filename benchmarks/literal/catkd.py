"""CAT-KD as the paper writes it (Guo et al., CVPR 2023), the slow way. B batch, K classes."""

import torch
import torch.nn.functional as F


def catkd(map_s, map_t, weight_s, weight_t, grid=2, normalize=False):
    """Maps (B, C, H, W), classifiers (K, C) of both networks -> scalar."""
    found = []
    for a_map, weight in ((map_s, weight_s), (map_t, weight_t)):
        of_classes = F.conv2d(a_map, weight[:, :, None, None])  # (B, K, H, W)
        pooled = F.adaptive_avg_pool2d(of_classes, grid).flatten(2)
        found.append(F.normalize(pooled, dim=2) if normalize else pooled)
    return torch.mean((found[0] - found[1]) ** 2)
