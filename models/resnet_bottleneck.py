"""ResNet50 for small images: four stages of bottlenecks behind a 3x3 stem without pooling.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (table 1). B batch, C channels,
H x W map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from . import MODELS
from .base import Classifier, Features, he_init, run_stages

EXPANSION = 4  # a bottleneck's output has this many times its inner channels


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut, without the last ReLU: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, c_in: int, c: int, stride: int):
        super().__init__()
        c_out = EXPANSION * c
        self.conv1 = nn.Conv2d(c_in, c, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv3 = nn.Conv2d(c, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return self.bn3(self.conv3(inner)) + self.shortcut(x)


@MODELS.register("ResNet50")
class ResNet50(Classifier):
    """Four stages of 3, 4, 6 and 3 bottlenecks."""

    head_name = "linear"

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(3, 64, 64, stride=1)
        self.layer2 = stage(4, 256, 128, stride=2)
        self.layer3 = stage(6, 512, 256, stride=2)
        self.layer4 = stage(3, 1024, 512, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        he_init(self)

    def features(self, x):
        stem = F.relu(self.bn1(self.conv1(x)))  # (B, C, H, W)
        stages, preacts = run_stages(self._layers(), stem)
        pooled = stages[-1].mean(dim=(2, 3))  # (B, C)
        logits = self.linear(pooled)
        return Features(stem, stages, preacts, stages[-1], pooled, logits, self.linear)

    def preact_norms(self):
        return tuple(layer[-1].bn3 for layer in self._layers())

    def _layers(self):
        return self.layer1, self.layer2, self.layer3, self.layer4


def stage(blocks: int, c_in: int, c: int, stride: int) -> nn.Sequential:
    """Bottlenecks of which the first has the stride."""
    later = [Bottleneck(EXPANSION * c, c, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(c_in, c, stride), *later)
