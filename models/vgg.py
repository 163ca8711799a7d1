"""VGG with BatchNorm and one linear layer: a stem block and four stages, pooled in between.

Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015 (table 1). B batch, C channels,
H x W map.
"""

from functools import partial

import torch.nn.functional as F
from torch import nn

from . import MODELS
from .base import Classifier, Features, he_init

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # depth -> number in each block
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
LARGE = 64  # images from this size on are pooled before the last stage as well


class VGG(Classifier):
    """VGG with global average pooling; images below 64x64 are pooled one time less.

    `features` raises ValueError for an image too small for the poolings.
    """

    head_name = "classifier"

    def __init__(self, num_classes: int, depth: int):
        super().__init__()
        c_in = 3
        for i, (n, width) in enumerate(zip(CONVOLUTIONS[depth], WIDTHS)):
            setattr(self, f"block{i}", block(n, c_in, width))
            c_in = width
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        he_init(self, linear_std=0.01)

    def features(self, x):
        height, width = x.shape[2:]
        large = height >= LARGE
        least = 16 if large else 8  # each pooling halves
        if min(height, width) < least:
            raise ValueError(
                f"{height}x{width} images are pooled to nothing: VGG needs {least}x{least}"
            )
        x = stem = F.relu(self.block0(x))  # (B, C, H, W)
        stages, preacts = [], []
        for layer in (self.block1, self.block2, self.block3, self.block4):
            if layer is not self.block4 or large:
                x = F.max_pool2d(x, 2)
            preacts.append(layer(x))
            x = F.relu(preacts[-1])
            stages.append(x)
        pooled = x.mean(dim=(2, 3))  # (B, C)
        logits = self.classifier(pooled)
        return Features(stem, tuple(stages), tuple(preacts), x, pooled, logits, self.classifier)

    def preact_norms(self):
        return self.block1[-1], self.block2[-1], self.block3[-1], self.block4[-1]


def block(convolutions: int, c_in: int, c_out: int) -> nn.Sequential:
    """3x3 convolutions with BatchNorm and ReLU, without the last ReLU."""
    layers = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        c_in = c_out
    return nn.Sequential(*layers[:-1])


for depth in CONVOLUTIONS:
    MODELS.register(f"vgg{depth}")(partial(VGG, depth=depth))
