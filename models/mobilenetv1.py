"""MobileNet (version 1) for images of about 224 pixels.

Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications,
2017 (table 1). B batch, C channels, H x W map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from . import MODELS
from .base import Classifier, Features, he_init, run_stages

STAGES = ((128, 2), (256, 2), (512, 6), (1024, 2))  # channels, blocks; the first halves the map


class Separable(nn.Module):
    """Depthwise 3x3, then 1x1, without the last ReLU: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


@MODELS.register("MobileNetV1")
class MobileNetV1(Classifier):
    """Stages of 128, 256, 512 and 1024 channels, as many as a ResNet's; the stem has 64."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.block1 = Separable(32, 64, 1)
        self.layers, c_in = nn.ModuleList(), 64
        for channels, blocks in STAGES:
            later = [Separable(channels, channels, 1) for _ in range(blocks - 1)]
            self.layers.append(nn.Sequential(Separable(c_in, channels, 2), *later))
            c_in = channels
        self.fc = nn.Linear(c_in, num_classes)
        he_init(self, linear_std=0.01)

    def features(self, x):
        stem = F.relu(self.block1(F.relu(self.bn1(self.conv1(x)))))  # (B, C, H, W)
        stages, preacts = run_stages(self.layers, stem)
        pooled = stages[-1].mean(dim=(2, 3))  # (B, C)
        return Features(stem, stages, preacts, stages[-1], pooled, self.fc(pooled), self.fc)

    def preact_norms(self):
        return tuple(layer[-1].bn2 for layer in self.layers)
