"""MobileNetV2 of half width for small images.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018 (table 2).
B batch, C channels, H x W map.
"""

from torch import Tensor, nn

from . import MODELS
from .base import Classifier, Features, he_init

WIDTH = 0.5
LAST = 1280  # channels of the last map
BLOCKS = (  # expansion, channels at full width, how many, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STAGE_ENDS = (1, 2, 4, 6)  # indices into BLOCKS


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int):
        super().__init__()
        c = c_in * expansion
        self.residual = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, c, 1, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, c, 3, stride, padding=1, groups=c, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


@MODELS.register("MobileNetV2")
class MobileNetV2(Classifier):
    """Its stages have no last activation, so that `preacts` are the `stages`."""

    learning_rate = 0.01
    head_name = "classifier"
    not_features = ("conv2",)

    def __init__(self, num_classes: int):
        super().__init__()
        c_in = int(32 * WIDTH)
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, c_in, 3, 2, padding=1, bias=False), nn.BatchNorm2d(c_in), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        for expansion, channels, n, stride in BLOCKS:
            c_out = int(channels * WIDTH)
            first = InvertedResidual(c_in, c_out, stride, expansion)
            later = [InvertedResidual(c_out, c_out, 1, expansion) for _ in range(n - 1)]
            self.blocks.append(nn.Sequential(first, *later))
            c_in = c_out
        self.conv2 = nn.Sequential(
            nn.Conv2d(c_in, LAST, 1, bias=False), nn.BatchNorm2d(LAST), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        he_init(self, linear_std=0.01)

    def features(self, x):
        x = stem = self.conv1(x)  # (B, C, H, W)
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in STAGE_ENDS:
                stages.append(x)
        last_map = self.conv2(x)
        pooled = last_map.mean(dim=(2, 3))  # (B, C)
        logits = self.classifier(pooled)
        stages = tuple(stages)
        return Features(stem, stages, stages, last_map, pooled, logits, self.classifier)

    def preact_norms(self):
        return tuple(self.blocks[i][-1].conv[-1] for i in STAGE_ENDS)
