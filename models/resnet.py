"""ResNets for small images: three stages of basic blocks, depth 6n + 2.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (section 4.2). The x4 networks
are about four times as wide. B batch, C channels, H x W map.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from . import MODELS
from .base import Classifier, Features, he_init, run_stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, a shortcut, no last ReLU: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(inner)) + self.downsample(x)


class ResNet(Classifier):
    """`depth` layers; `widths` are the channels of the stem and the three stages."""

    def __init__(self, num_classes: int, depth: int, widths: tuple[int, int, int, int]):
        super().__init__()
        blocks = (depth - 2) // 6
        stem, *widths = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(blocks, stem, widths[0], stride=1)
        self.layer2 = stage(blocks, widths[0], widths[1], stride=2)
        self.layer3 = stage(blocks, widths[1], widths[2], stride=2)
        self.fc = nn.Linear(widths[2], num_classes)
        he_init(self)

    def features(self, x):
        stem = F.relu(self.bn1(self.conv1(x)))  # (B, C, H, W)
        stages, preacts = run_stages((self.layer1, self.layer2, self.layer3), stem)
        pooled = stages[-1].mean(dim=(2, 3))  # (B, C)
        return Features(stem, stages, preacts, stages[-1], pooled, self.fc(pooled), self.fc)

    def preact_norms(self):
        return tuple(layer[-1].bn2 for layer in (self.layer1, self.layer2, self.layer3))


def stage(blocks: int, c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """Blocks of which the first has the stride."""
    later = [BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(c_in, c_out, stride), *later)


for depth in (8, 14, 20, 32, 44, 56, 110):
    MODELS.register(f"resnet{depth}")(partial(ResNet, depth=depth, widths=(16, 16, 32, 64)))
for depth in (8, 32):
    MODELS.register(f"resnet{depth}x4")(partial(ResNet, depth=depth, widths=(32, 64, 128, 256)))
