"""ShuffleNet with 3 groups, for small images.

Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices,
CVPR 2018. B batch, C channels, H x W map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import MODELS
from .base import Classifier, Features, run_stages

STEM, GROUPS = 24, 3
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, blocks


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, without the last ReLU.

    (B, C, H, W) -> (B, C', H', W'). With stride 2 the pooled input is concatenated, else the input
    is added.
    """

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        c_new = c_out - c_in if stride == 2 else c_out
        c = c_new // 4
        self.stride, self.groups = stride, 1 if c_in == STEM else GROUPS
        self.conv1 = nn.Conv2d(c_in, c, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, stride, padding=1, groups=c, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv3 = nn.Conv2d(c, c_new, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(c_new)

    def forward(self, x: Tensor) -> Tensor:
        new = F.relu(self.bn1(self.conv1(x)))
        new = F.channel_shuffle(new, self.groups)
        new = F.relu(self.bn2(self.conv2(new)))
        new = self.bn3(self.conv3(new))
        if self.stride == 1:
            return new + x
        return torch.cat([new, F.avg_pool2d(x, 3, 2, padding=1)], dim=1)


@MODELS.register("ShuffleV1")
class ShuffleV1(Classifier):
    """Three stages, the first unit of each with stride 2."""

    learning_rate = 0.01
    head_name = "linear"

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        c_in = STEM
        for i, (c_out, n) in enumerate(STAGES, start=1):
            units = [Unit(c_in, c_out, 2), *(Unit(c_out, c_out, 1) for _ in range(n - 1))]
            setattr(self, f"layer{i}", nn.Sequential(*units))
            c_in = c_out
        self.linear = nn.Linear(c_in, num_classes)

    def features(self, x):
        stem = F.relu(self.bn1(self.conv1(x)))  # (B, C, H, W)
        stages, preacts = run_stages((self.layer1, self.layer2, self.layer3), stem)
        pooled = stages[-1].mean(dim=(2, 3))  # (B, C)
        logits = self.linear(pooled)
        return Features(stem, stages, preacts, stages[-1], pooled, logits, self.linear)
