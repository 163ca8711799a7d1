"""Random resized crops of images in memory (Szegedy et al., CVPR 2015), as a pure function.

They are torchvision's RandomResizedCrop, but that every choice is a hash of seed, epoch and sample.
M images of C channels, H x W.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dataset.augment import FLIP, draw

SMALLEST = 0.08  # share of the area
RATIOS = 3 / 4, 4 / 3  # of width to height
TRIES = 10  # to fit into the image; then it is the whole one
# Purposes of `draw`: those of the first try, each TRIES of them, and of the place.
AREA, RATIO, TOP, LEFT = 300, 320, 340, 341


class Boxes(NamedTuple):
    """The part of each image that is cut out and scaled to its size, and whether it is flipped."""

    top: Tensor  # (M,) int64
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # (M,) int64, 0 or 1


def choose_boxes(
    seed: int, epoch: int, index: Tensor, size: tuple[int, int], flip: bool, salt: int = 0
) -> Boxes:
    """Random parts of samples `index` (M,) of a size (H, W) in an epoch.

    `salt` is added to what they are drawn for: STRONG for those of the second view.
    """

    def tries(purpose: int, low: float, high: float) -> Tensor:  # (TRIES, M)
        drawn = torch.stack([draw(seed, epoch, purpose + t + salt, index) for t in range(TRIES)])
        return low + (high - low) * drawn.double() / 2**32

    def randint(high: Tensor | int, purpose: int) -> Tensor:
        return (draw(seed, epoch, purpose + salt, index) * high) >> 32

    tall, wide = size
    area = tall * wide * tries(AREA, SMALLEST, 1)
    ratio = tries(RATIO, *map(math.log, RATIOS)).exp()
    height, width = (x.sqrt().round().long() for x in (area / ratio, area * ratio))
    fits = (height.clamp(1, tall) == height) & (width.clamp(1, wide) == width)
    first = fits.int().argmax(dim=0, keepdim=True)  # (1, M)
    height, width = (
        x.gather(0, first)[0].where(fits.any(dim=0), torch.tensor(whole))
        for x, whole in ((height, tall), (width, wide))
    )
    top, left = randint(tall + 1 - height, TOP), randint(wide + 1 - width, LEFT)
    return Boxes(top, left, height, width, randint(2 if flip else 1, FLIP))


def crop_resize_and_flip(images: Tensor, boxes: Boxes) -> Tensor:
    """Cut out, scale to the old size (bilinear), then flip.

    (M, C, H, W) uint8 -> (M, C, H, W) uint8
    """
    tall, wide = images.shape[2:]
    images = interpolate(images.float(), boxes.top, boxes.height, tall)
    images = interpolate(images.mT, boxes.left, boxes.width, wide).mT.round().to(torch.uint8)
    return torch.where(boxes.flip.bool()[:, None, None, None], images.flip(3), images)


def interpolate(x: Tensor, start: Tensor, length: Tensor, n: int) -> Tensor:
    """`length` (M,) rows from `start` (M,) on, scaled to n: (M, C, H, W) -> (M, C, n, W)"""
    scale = length[:, None] / n
    places = (torch.arange(n, device=x.device) + 0.5) * scale - 0.5  # (M, n)
    places = torch.minimum(places.clamp(min=0), length[:, None] - 1)
    before = places.floor().long()
    after = torch.minimum(before + 1, length[:, None] - 1)
    share = (places - before)[:, None, :, None]  # of the row after
    rows = ((start[:, None] + at)[:, None, :, None] for at in (before, after))
    one, other = (x.gather(2, at.expand(-1, x.shape[1], -1, x.shape[3])) for at in rows)
    return one.lerp(other, share)
