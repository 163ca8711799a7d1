"""Wide ResNets: three stages of pre-activation blocks, depth 6n + 4.

Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016. B batch, C channels, H x W map.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from . import MODELS
from .base import Classifier, Features, he_init


class PreactBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, and a shortcut.

    The network runs `bn1` itself, whose output is the pre-activation of the stage before.
    """

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.convShortcut = None
        if c_in != c_out:
            self.convShortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """x and relu(bn1(x)), (B, C, H, W) each -> (B, C', H', W')"""
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        inner = F.relu(self.bn2(self.conv1(activated)))
        return self.conv2(inner) + shortcut


class Stage(nn.Module):
    """Blocks of which the first has the stride, under the name of published checkpoints."""

    def __init__(self, blocks: int, c_in: int, c_out: int, stride: int):
        super().__init__()
        later = [PreactBlock(c_out, c_out, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(PreactBlock(c_in, c_out, stride), *later)


class WideResNet(Classifier):
    """`depth` layers, `width` times the channels of a ResNet.

    A stage's output is a sum without ReLU: `preacts` are outputs of the BatchNorm after it.
    """

    not_features = ("bn1",)

    def __init__(self, num_classes: int, depth: int, width: int):
        super().__init__()
        blocks, c = (depth - 4) // 6, 16 * width
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(blocks, 16, c, stride=1)
        self.block2 = Stage(blocks, c, 2 * c, stride=2)
        self.block3 = Stage(blocks, 2 * c, 4 * c, stride=2)
        self.bn1 = nn.BatchNorm2d(4 * c)
        self.fc = nn.Linear(4 * c, num_classes)
        he_init(self)
        nn.init.zeros_(self.fc.bias)

    def features(self, x):
        x = stem = self.conv1(x)  # (B, C, H, W)
        stages, norms = [], []
        for stage in (self.block1, self.block2, self.block3):
            for i, block in enumerate(stage.layer):
                before = block.bn1(x)
                if i == 0:
                    norms.append(before)
                x = block(x, F.relu(before))
            stages.append(x)
        norms.append(self.bn1(x))
        last_map = F.relu(norms[-1])
        pooled = last_map.mean(dim=(2, 3))  # (B, C)
        logits = self.fc(pooled)
        preacts = tuple(norms[1:])  # the first norm belongs to the stem
        return Features(stem, tuple(stages), preacts, last_map, pooled, logits, self.fc)

    def preact_norms(self):
        return self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1


for depth in (16, 40):
    for width in (1, 2):
        MODELS.register(f"wrn_{depth}_{width}")(partial(WideResNet, depth=depth, width=width))
