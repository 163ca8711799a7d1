"""Random crops and flips as a pure function of (seed, epoch, sample), and the arithmetic of images.

No generator is read or moved: every choice is a hash of who asks. A resumed run, a second run and
a run on more ranks therefore see the same pixels. M images of C channels, H x W, of N in a split.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Raised whenever the same (seed, epoch, sample) would give other pixels: here, in `autoaugment` or
# in `stream`. Part of an experiment's identity: results of two versions are not results of one.
AUGMENTATION_VERSION = 1
MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: keeps the hash of zeros away from zero
# What a number is drawn for; each has its own sequence. 4 is `stream`'s, 5 `subset`'s and 100 on
# `autoaugment`'s.
ORDER, TOP, LEFT, MIRROR = range(4)


class Views(NamedTuple):
    """How each training image is shown: where its crop starts in the padded image, and mirrored?"""

    top: Tensor  # (M,) int64 in [0, 2 * padding]
    left: Tensor  # (M,) int64 in [0, 2 * padding]
    mirror: Tensor  # (M,) int64, 0 or 1


def mix(x):
    """Scramble 32-bit numbers, an int or an int64 tensor of them; no two inputs meet.

    The finaliser of MurmurHash3 (Appleby). int64 products wrap, their low 32 bits are exact.
    """
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def draw(seed: int, epoch: int, purpose: int, index: Tensor) -> Tensor:
    """Uniform 32-bit numbers for samples of an epoch, all different for one (seed, epoch, purpose).

    index: (M,) int64 in [0, 2**32) -> (M,) int64 in [0, 2**32). The low 64 bits of a seed count.
    """
    key = GOLDEN
    for word in (seed, seed >> 32, epoch, purpose):
        key = mix((key + word) & MASK) ^ GOLDEN
    return mix((mix(index ^ key) + mix(key)) & MASK)


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The shuffled order of an epoch: (N,) int64, a permutation of 0..n-1."""
    return draw(seed, epoch, ORDER, torch.arange(n)).argsort(stable=True)


def choose(seed: int, epoch: int, index: Tensor, padding: int, flip: bool) -> Views:
    """How samples `index` (M,) are shown in an epoch: uniform offsets, half of them mirrored."""

    def below(limit: int, purpose: int) -> Tensor:
        return (draw(seed, epoch, purpose, index) * limit) >> 32

    places = 2 * padding + 1
    return Views(below(places, TOP), below(places, LEFT), below(2 if flip else 1, MIRROR))


def blank(images: Tensor, m: int, padding: int) -> Tensor:
    """A black canvas for `crop` of up to M images: (2, M, C, H + 2 * padding, W + 2 * padding)."""
    _, c, h, w = images.shape
    return images.new_zeros(2, m, c, h + 2 * padding, w + 2 * padding)


def crop(images: Tensor, views: Views, canvas: Tensor) -> Tensor:
    """Pad with black, crop to the old size, then mirror.

    (M, C, H, W) uint8 -> (M, C, H, W) uint8. The images and their mirror images are written inside
    the black border of a canvas from `blank`, which can be used again. Each row of a crop is one
    run of bytes of the canvas, so a single gather of runs fetches all of them.
    """
    (m, c, h, w), (_, most, _, tall, wide) = images.shape, canvas.shape
    border = (tall - h) // 2
    inside = canvas[:, :m, :, border : border + h, border : border + w]
    inside[0], inside[1] = images, images.flip(3)
    left = torch.where(views.mirror.bool(), 2 * border - views.left, views.left)
    place = views.mirror * most + torch.arange(m, device=images.device)
    corner = place * (c * tall * wide) + views.top * wide + left  # (M,)
    channels = torch.arange(c, device=images.device)[:, None] * (tall * wide)
    rows = channels + torch.arange(h, device=images.device) * wide  # (C, H) from the corner on
    runs = canvas.view(-1).as_strided((canvas.numel() - w + 1, w), (1, 1))  # overlapping, no copy
    start = corner[:, None] + rows.view(-1)  # (M, C * H)
    return runs.index_select(0, start.view(-1)).view(m, c, h, w)


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(M, C, H, W) uint8 -> float32 of the same shape: images * scale + shift."""
    return images.float().mul_(scale).add_(shift)


def scale_and_shift(mean, std, device) -> tuple[Tensor, Tensor]:
    """(byte / 255 - mean) / std as byte * scale + shift, two (C, 1, 1)."""
    mean, std = torch.tensor([mean, std], dtype=torch.float64)[..., None, None]
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
