"""A network whose last map goes through a projector to a classifier of other maps.

B batch, C channels, H x W map, K classes.
"""

import re

from torch import nn

from helper.errors import UserError

from .adapters import pool_to
from .base import Classifier

PREFIX = "projected:"


class Projector(nn.Sequential):
    """1x1, 3x3 and 1x1 convolutions, each with BatchNorm and ReLU; C' / `factor` channels within.

    (B, C, H, W) -> (B, C', H, W)
    """

    def __init__(self, c_in: int, c_out: int, factor: int):
        within = max(1, c_out // factor)
        layers: list[nn.Module] = []
        for a, b, kernel in ((c_in, within, 1), (within, within, 3), (within, c_out, 1)):
            layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False)]
            layers += [nn.BatchNorm2d(b), nn.ReLU()]
        super().__init__(*layers)


class Projected(Classifier):
    """A network without its classifier, a projector to maps of `shape`, and a classifier of those.

    The last map is the projector's; one larger than `shape` is pooled to that size first. The
    network that is given, whose last map has `channels`, loses its classifier.
    """

    head_name = "classifier"

    def __init__(
        self, network: Classifier, channels: int, shape: tuple[int, int, int], factor: int,
        classes: int,
    ):  # fmt: skip
        super().__init__()
        network.set_submodule(network.head_name, nn.Identity())
        self.size = tuple(shape[1:])
        self.name = f"{PREFIX}{network.name},{'x'.join(map(str, shape))},{factor}"
        self.network = network
        self.projector = Projector(channels, shape[0], factor)
        self.classifier = nn.Linear(shape[0], classes)

    def describe(self):
        return f"its classifier is another's, behind a projector of {self.size[0]}x{self.size[1]}"

    def features(self, x):
        own = self.network.features(x)
        size = tuple(min(pair) for pair in zip(own.last_map.shape[2:], self.size, strict=True))
        smaller = own.last_map if own.last_map.shape[2:] == size else pool_to(own.last_map, size)
        last_map = self.projector(smaller)
        pooled = last_map.mean(dim=(2, 3))
        logits = self.classifier(pooled)
        return own.replace(last_map=last_map, pooled=pooled, logits=logits, head=self.classifier)


def parts_of(name: str) -> tuple[str, tuple[int, int, int], int]:
    """'projected:resnet8x4,256x8x8,2' -> 'resnet8x4', (256, 8, 8), 2; UserError for another form"""
    inner, *rest = name.removeprefix(PREFIX).rsplit(",", 2)
    found = re.fullmatch(r"(\d{1,4})x(\d{1,3})x(\d{1,3}),(\d{1,2})", ",".join(rest))
    numbers = [int(number) for number in found.groups()] if found else [0]
    if min(numbers) < 1 or inner.startswith(PREFIX):
        raise UserError(f"{name} is no network and its projector, as {PREFIX}resnet8x4,256x8x8,2")
    return inner, tuple(numbers[:3]), numbers[3]
