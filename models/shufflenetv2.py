"""ShuffleNet V2 1x, for small images.

Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018
(figure 3). B batch, C channels, H x W map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import MODELS
from .base import Classifier, Features, run_stages

STEM, LAST = 24, 1024
STAGES = ((116, 3), (232, 7), (464, 3))  # channels, units after the one with stride 2


class Unit(nn.Module):
    """Convolves half of the channels and keeps the other half, without the last ReLU and shuffle.

    (B, C, H, W) -> the same shape, the kept half first. That half is an output of ReLU already, so
    that the ReLU after the unit does not change it.
    """

    def __init__(self, channels: int):
        super().__init__()
        c = channels // 2
        self.conv1 = nn.Conv2d(c, c, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv3 = nn.Conv2d(c, c, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        kept, new = x.chunk(2, dim=1)
        new = F.relu(self.bn1(self.conv1(new)))
        new = self.bn2(self.conv2(new))
        new = self.bn3(self.conv3(new))
        return torch.cat([kept, new], dim=1)


class DownUnit(nn.Module):
    """Two branches with stride 2, without the last ReLU and shuffle.

    (B, C, H, W) -> (B, C', H/2, W/2)
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        c = c_out // 2
        self.conv1 = nn.Conv2d(c_in, c_in, 3, 2, padding=1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = nn.Conv2d(c_in, c, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv3 = nn.Conv2d(c_in, c, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c)
        self.conv4 = nn.Conv2d(c, c, 3, 2, padding=1, groups=c, bias=False)
        self.bn4 = nn.BatchNorm2d(c)
        self.conv5 = nn.Conv2d(c, c, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return torch.cat([left, right], dim=1)


def relu_and_shuffle(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W): channels of both halves in turn."""
    return F.channel_shuffle(F.relu(x), 2)


@MODELS.register("ShuffleV2")
class ShuffleV2(Classifier):
    """Three stages, the first unit of each with stride 2, and a last 1x1 convolution.

    The channels of `preacts` are in the order before the shuffle, as in the published code.
    """

    learning_rate = 0.01
    head_name = "linear"
    not_features = ("conv2", "bn2")

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        c_in = STEM
        for i, (c_out, n) in enumerate(STAGES, start=1):
            units = [DownUnit(c_in, c_out), *(Unit(c_out) for _ in range(n))]
            setattr(self, f"layer{i}", nn.Sequential(*units))
            c_in = c_out
        self.conv2 = nn.Conv2d(c_in, LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.linear = nn.Linear(LAST, num_classes)

    def features(self, x):
        stem = F.relu(self.bn1(self.conv1(x)))  # (B, C, H, W)
        layers = self.layer1, self.layer2, self.layer3
        stages, preacts = run_stages(layers, stem, relu_and_shuffle)
        last_map = F.relu(self.bn2(self.conv2(stages[-1])))
        pooled = last_map.mean(dim=(2, 3))  # (B, C)
        logits = self.linear(pooled)
        return Features(stem, stages, preacts, last_map, pooled, logits, self.linear)
