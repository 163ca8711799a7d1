"""Random crops and flips as a pure function of (seed, epoch, sample), and normalisation.

No random generator is used: every choice is a hash of seed, epoch and sample. A resumed run, a
second run and a run on more ranks therefore see the same pixels. M images of C channels, H x W, of
N in a split.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Raised whenever the same (seed, epoch, sample) would give other pixels: here, in `autoaugment` or
# in `stream`. Part of an experiment's identity: results of two versions are not results of one.
AUGMENTATION_VERSION = 1
MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: keeps the hash of zeros away from zero
# Purposes of `draw`, each with a random sequence of its own. `stream` has 4, `subset` 5 and 6;
# `autoaugment` those from 100, `randaugment` those from 200 and `resized` those from 300 on.
ORDER, TOP, LEFT, FLIP = range(4)
ONE_MORE, PLACE = 7, 8
STRONG = 1 << 16  # added to a purpose: of the second, strongly augmented view of an image


class Views(NamedTuple):
    """The corner of each training image's crop in the padded image, and whether it is flipped."""

    top: Tensor  # (M,) int64 in [0, 2 * padding]
    left: Tensor  # (M,) int64 in [0, 2 * padding]
    flip: Tensor  # (M,) int64, 0 or 1


def hash_32(x):
    """A bijective hash of 32-bit numbers: an int, or an int64 tensor of them.

    The finaliser of MurmurHash3 (Appleby). int64 products overflow; their low 32 bits are exact.
    """
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def draw(seed: int, epoch: int, purpose: int, index: Tensor) -> Tensor:
    """Uniform random 32-bit numbers, one a sample, all different for one (seed, epoch, purpose).

    index: (M,) int64 in [0, 2**32) -> (M,) int64 in [0, 2**32). Of a seed the low 64 bits are used.
    """
    key = GOLDEN
    for word in (seed, seed >> 32, epoch, purpose):
        key = hash_32((key + word) & MASK) ^ GOLDEN
    return hash_32((hash_32(index ^ key) + hash_32(key)) & MASK)


def without_waiting(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From host memory it goes by way of pinned memory, so that the host does
    not wait until the device has done what it was told before."""
    return x if x.device == device else x.pin_memory().to(device, non_blocking=True)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The shuffled order of the samples in an epoch: (N,) int64, a permutation of 0..n-1."""
    return draw(seed, epoch, ORDER, torch.arange(n)).argsort(stable=True)


def members_by_class(order: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Samples in some order (N,), labels (N,) -> those of each class, in that order."""
    grouped = order[labels[order].argsort(stable=True)]
    return grouped.split(labels.bincount().tolist())


def balanced_order(seed: int, epoch: int, labels: Tensor) -> Tensor:
    """N draws from N samples in which each class that there is comes alike often, but for one draw.

    labels: (N,) on the CPU -> (N,) int64. The samples of a class are drawn alike often as well, but
    for one draw: of a large class not all of them, those of a small one again and again.
    """
    n = len(labels)
    classes = [few for few in members_by_class(permutation(seed, epoch, n), labels) if len(few)]
    draws, left = divmod(n, len(classes))
    rank = draw(seed, epoch, ONE_MORE, torch.arange(len(classes))).argsort().argsort().tolist()
    counts = [draws + (place < left) for place in rank]
    drawn = [few.repeat(-(-m // len(few)))[:m] for few, m in zip(classes, counts)]
    return torch.cat(drawn)[draw(seed, epoch, PLACE, torch.arange(n)).argsort(stable=True)]


def choose_views(
    seed: int, epoch: int, index: Tensor, padding: int, flip: bool, salt: int = 0
) -> Views:
    """Random crop offsets and flips of samples `index` (M,) in an epoch, all uniform.

    `salt` is added to what they are drawn for: STRONG for those of the second view.
    """

    def randint(high: int, purpose: int) -> Tensor:
        return (draw(seed, epoch, purpose + salt, index) * high) >> 32

    offsets = 2 * padding + 1
    return Views(randint(offsets, TOP), randint(offsets, LEFT), randint(2 if flip else 1, FLIP))


def count_views(padding: int, flip: bool) -> int:
    """How many different views an image has."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def number_views(views: Views, padding: int, flip: bool) -> Tensor:
    """Views -> (M,) int64 in [0, count_views), one number for each crop and flip."""
    corner = views.top * (2 * padding + 1) + views.left
    return 2 * corner + views.flip if flip else corner


def views_of(numbers: Tensor, padding: int, flip: bool) -> Views:
    """What `number_views` made a number of: (M,) int64 -> Views"""
    corner, flipped = (numbers // 2, numbers % 2) if flip else (numbers, torch.zeros_like(numbers))
    return Views(corner // (2 * padding + 1), corner % (2 * padding + 1), flipped)


def new_canvas(images: Tensor, m: int, padding: int) -> Tensor:
    """A black canvas on which `crop_and_flip` works on up to M images.

    -> (2, M, C, H + 2 * padding, W + 2 * padding), of the type of the images and on their device.
    """
    _, c, h, w = images.shape
    return images.new_zeros(2, m, c, h + 2 * padding, w + 2 * padding)


def crop_and_flip(images: Tensor, views: Views, canvas: Tensor) -> Tensor:
    """Pad with black, crop to the old size, then flip horizontally.

    (M, C, H, W) uint8 -> (M, C, H, W) uint8. The images and their mirror images are written inside
    the black border of a canvas from `new_canvas`, which can be used again. Each row of a crop is
    contiguous in the canvas, so a single gather of rows fetches all crops.
    """
    (m, c, h, w), (_, capacity, _, tall, wide) = images.shape, canvas.shape
    border = (tall - h) // 2
    inside = canvas[:, :m, :, border : border + h, border : border + w]
    inside[0], inside[1] = images, images.flip(3)
    left = torch.where(views.flip.bool(), 2 * border - views.left, views.left)
    slot = views.flip * capacity + torch.arange(m, device=images.device)
    corner = slot * (c * tall * wide) + views.top * wide + left  # (M,)
    channels = torch.arange(c, device=images.device)[:, None] * (tall * wide)
    rows = channels + torch.arange(h, device=images.device) * wide  # (C, H) from the corner on
    every = canvas.view(-1).as_strided((canvas.numel() - w + 1, w), (1, 1))  # overlapping, no copy
    start = corner[:, None] + rows.view(-1)  # (M, C * H)
    return every.index_select(0, start.view(-1)).view(m, c, h, w)


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(M, C, H, W) uint8 -> float32 of the same shape: images * scale + shift."""
    return images.float().mul_(scale).add_(shift)


def scale_and_shift(mean, std, device) -> tuple[Tensor, Tensor]:
    """The (C, 1, 1) with which byte * scale + shift is (byte / 255 - mean) / std."""
    mean, std = torch.tensor([mean, std], dtype=torch.float64)[..., None, None]
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
