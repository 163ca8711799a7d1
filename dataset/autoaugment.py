"""AutoAugment's CIFAR policy for many images at once, as a pure function of (seed, epoch, sample).

Cubuk et al., AutoAugment, CVPR 2019, table 7, with the magnitudes of torchvision's AutoAugment.
The pixels are those of torchvision's uint8 tensor operations on a CPU (nearest neighbour, black
outside), bit for bit, up to 65,793 pixels an image. M images of 3 channels, H x W, both at least 3.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from dataset.augment import draw, without_waiting

# The two operations of each of the 25 sub-policies: name, probability in tenths, level in 0..9 (0
# where an operation has no levels)
POLICY = (
    (("Invert", 1, 0), ("Contrast", 2, 6)),
    (("Rotate", 7, 2), ("TranslateX", 3, 9)),
    (("Sharpness", 8, 1), ("Sharpness", 9, 3)),
    (("ShearY", 5, 8), ("TranslateY", 7, 9)),
    (("AutoContrast", 5, 0), ("Equalize", 9, 0)),
    (("ShearY", 2, 7), ("Posterize", 3, 7)),
    (("Color", 4, 3), ("Brightness", 6, 7)),
    (("Sharpness", 3, 9), ("Brightness", 7, 9)),
    (("Equalize", 6, 0), ("Equalize", 5, 0)),
    (("Contrast", 6, 7), ("Sharpness", 6, 5)),
    (("Color", 7, 7), ("TranslateX", 5, 8)),
    (("Equalize", 3, 0), ("AutoContrast", 4, 0)),
    (("TranslateY", 4, 3), ("Sharpness", 2, 6)),
    (("Brightness", 9, 6), ("Color", 2, 8)),
    (("Solarize", 5, 2), ("Invert", 0, 0)),
    (("Equalize", 2, 0), ("AutoContrast", 6, 0)),
    (("Equalize", 2, 0), ("Equalize", 6, 0)),
    (("Color", 9, 9), ("Equalize", 6, 0)),
    (("AutoContrast", 8, 0), ("Solarize", 2, 8)),
    (("Brightness", 1, 3), ("Color", 7, 0)),
    (("Solarize", 4, 5), ("AutoContrast", 9, 0)),
    (("TranslateY", 9, 9), ("TranslateY", 7, 9)),
    (("AutoContrast", 9, 0), ("Solarize", 8, 3)),
    (("Equalize", 8, 0), ("Invert", 1, 0)),
    (("TranslateY", 7, 9), ("AutoContrast", 9, 0)),
)
LEVELS = 10
SIGNED = {  # magnitude of the last level; a translation's is a fraction of the image
    "ShearX": 0.3,  # slope
    "ShearY": 0.3,
    "TranslateX": 150 / 331,
    "TranslateY": 150 / 331,
    "Rotate": 30.0,  # degrees, anticlockwise
    "Brightness": 0.9,  # weight of the extrapolation, see `blend`
    "Color": 0.9,
    "Contrast": 0.9,
    "Sharpness": 0.9,
}
# Purposes of `draw`, apart from those in dataset.augment; of a pair, one for each operation
SUB_POLICY, APPLY, SIGN = 100, (101, 102), (103, 104)


class Actions(NamedTuple):
    """The operations of a policy: each (name, level, sign) once, sorted by operation."""

    actions: tuple[tuple[str, int, int], ...]
    levels: int  # of a magnitude


class Choices(NamedTuple):
    """Each image's sub-policy; for its two operations, whether they are applied and their sign."""

    policy: Tensor  # (M,) int64 in [0, 25)
    applied: Tensor  # (2, M) bool
    negative: Tensor  # (2, M) int64, 0 or 1; counts for signed operations only


def auto_augment(images: Tensor, seed: int, epoch: int, index: Tensor, salt: int = 0) -> Tensor:
    """Apply to each image the sub-policy that its sample has in this epoch.

    images: (M, 3, H, W) uint8 on any device, not changed; index: (M,) int64, the numbers of the
    samples -> (M, 3, H, W) uint8. The choices are made and sorted on the CPU, so with an index on
    the CPU nothing waits for a GPU. `salt` is added to what they are drawn for.
    """
    choices = choose_operations(seed, epoch, index.cpu(), salt)
    return apply_actions(images, action_indices(choices), ACTIONS)


def apply_actions(images: Tensor, chosen: Tensor, of: Actions) -> Tensor:
    """Apply actions one after another: images (M, 3, H, W) uint8 -> the same.

    chosen: (2, M) indices of the two of each image, on the CPU; the number of actions for none.
    """
    sources, magnitudes = operation_tables(of, *images.shape[2:], images.device)
    actions, order = chosen.sort(dim=1, stable=True)  # (2, M) each
    groups = len(OPERATIONS) + 1  # the last one: nothing to do
    counts = [
        torch.bincount(row, minlength=groups).tolist() for row in operation_numbers(of)[actions]
    ]
    plan = torch.stack([actions, order, order.argsort(dim=1)], dim=1)  # (2, 3, M)
    plan = without_waiting(plan, images.device)
    for sizes, (actions, order, inverse) in zip(counts, plan):  # first and second operation
        parts = list(images.index_select(0, order).split(sizes))  # one operation each
        for i, (operation, action) in enumerate(zip(OPERATIONS, actions.split(sizes))):
            if len(action):
                table = sources if operation is warp else magnitudes
                parts[i] = operation(parts[i], table.index_select(0, action))
        images = torch.cat(parts).index_select(0, inverse)
    return images


def choose_operations(seed: int, epoch: int, index: Tensor, salt: int = 0) -> Choices:
    """The random choices for samples `index` (M,) in an epoch: uniform sub-policies, signs."""
    policy = (draw(seed, epoch, SUB_POLICY + salt, index) * len(POLICY)) >> 32
    tenths = torch.tensor([[chance for _, chance, _ in pair] for pair in POLICY]).T  # (2, 25)
    chance = torch.stack([draw(seed, epoch, purpose + salt, index) for purpose in APPLY])
    sign = torch.stack([draw(seed, epoch, purpose + salt, index) for purpose in SIGN])
    return Choices(policy, chance * 10 < tenths[:, policy] << 32, sign >> 31)


def action_indices(choices: Choices) -> Tensor:
    """Index into ACTIONS of both operations: (2, M) int64, their number where none is applied."""
    first_second = torch.arange(2)[:, None]
    actions = ACTION_OF[choices.policy, first_second, choices.negative]
    return torch.where(choices.applied, actions, len(ACTIONS.actions))


@functools.lru_cache(maxsize=8)
def operation_tables(of: Actions, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The arguments of operations: `source_pixels` of each warp, `magnitude` of each action.

    -> (number of warps, H * W) int64, (number of actions, 1, 1, 1) float32.
    """
    magnitudes = [
        magnitude(name, level, h, w, of.levels) * sign for name, level, sign in of.actions
    ]
    warps = [
        source_pixels(name, amount, h, w)
        for (name, _, _), amount in zip(of.actions, magnitudes)
        if FUNCTIONS[name] is warp
    ]
    return torch.stack(warps).to(device), torch.tensor(magnitudes).view(-1, 1, 1, 1).to(device)


@functools.lru_cache(maxsize=8)
def operation_numbers(of: Actions) -> Tensor:
    """Index into OPERATIONS of each action, and of none behind them: (number + 1,) int64."""
    numbers = [OPERATIONS.index(FUNCTIONS[name]) for name, _, _ in of.actions]
    return torch.tensor([*numbers, len(OPERATIONS)])


def magnitude(name: str, level: int, h: int, w: int, levels: int = LEVELS) -> float:
    """What a level stands for: pixels, slope, degrees, blend weight, byte mask or threshold."""
    if name in SIGNED:
        size = {"TranslateX": w, "TranslateY": h}.get(name, 1)
        value = torch.linspace(0, SIGNED[name] * size, levels)[level].item()
        return float(int(value)) if name.startswith("Translate") else value
    if name == "Posterize":
        return 256.0 - 2 ** round(level * 4 / (levels - 1))  # drops up to four bits
    if name == "Solarize":
        return torch.linspace(255, 0, levels)[level].item()
    return 0.0  # no levels; a threshold of 0 inverts


def source_pixels(name: str, amount: float, h: int, w: int) -> Tensor:
    """Where a warp takes each pixel from: (H * W,) int64, 1 + its flat index, or 0 for outside.

    torchvision's float32 grid, step by step, and the same sampling, here of the indices themselves:
    ties between two pixels are broken as they are there.
    """
    angle = math.radians(-amount)
    # The inverse map, in pixels from the centre; a shear keeps the first row or column where it is
    matrix = {
        "ShearX": [1, amount, amount * h / 2, 0, 1, 0],
        "ShearY": [1, 0, 0, amount, 1, amount * w / 2],
        "TranslateX": [1, 0, -amount, 0, 1, 0],
        "TranslateY": [1, 0, 0, 0, 1, -amount],
        "Rotate": [math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0],
    }[name]
    inverse = torch.tensor(matrix, dtype=torch.float32).view(2, 3).T / torch.tensor([w / 2, h / 2])
    y, x = (torch.linspace(0.5 - size / 2, size / 2 - 0.5, size) for size in (h, w))
    target = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones(h, w)], dim=2)
    grid = target.view(1, h * w, 3).bmm(inverse[None]).view(1, h, w, 2)
    indices = torch.arange(1.0, h * w + 1).view(1, 1, h, w)
    return grid_sample(indices, grid, mode="nearest", align_corners=False).long().view(-1)


def warp(images: Tensor, sources: Tensor) -> Tensor:
    """Shear, translate or rotate: images (g, 3, H, W), sources (g, H * W) of `source_pixels`."""
    pixels = pad(images.flatten(2), (1, 0))  # index 0 is black
    return pixels.gather(2, sources[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


# The operations below: images (g, 3, H, W) uint8, magnitudes (g, 1, 1, 1) -> (g, 3, H, W) uint8


def adjust_brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Extrapolate from black, or blend with it."""
    return to_uint8(images.float().mul_(1 + magnitudes))


def adjust_saturation(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Extrapolate from the grayscale image, or blend with it."""
    pixels = images.float()
    return blend(pixels, to_grayscale(pixels), magnitudes)


def adjust_contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Extrapolate from the mean gray, or blend with it."""
    pixels = images.float()
    total = to_grayscale(pixels).sum(dim=(2, 3), keepdim=True)
    # a tensor as divisor: a GPU multiplies by the inverse of a number, which rounds differently
    return blend(pixels, total / torch.full_like(total, pixels[0, 0].numel()), magnitudes)


def adjust_sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Extrapolate from the image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13, which keeps the border."""
    wide = images.short()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    box += 4 * wide[..., 1:-1, 1:-1]
    pixels = images.float()
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = box.float().mul_(1 / 13).round_()  # a thirteenth is never halfway
    return blend(pixels, smooth, magnitudes)


def posterize(images: Tensor, masks: Tensor) -> Tensor:
    """Keep the upper bits."""
    return images & masks.to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the bytes from a threshold on; a threshold of 0 inverts all."""
    above = images >= thresholds.ceil().to(torch.uint8)
    return images ^ above.to(torch.uint8).mul_(255)  # a tenth of the time of torch.where


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Scale each channel so that its darkest byte becomes 0 and its brightest 255."""
    low, high = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    flat = low == high  # not changed
    scale = (255 / (high - low)).masked_fill_(flat, 1)
    return to_uint8(images.float().sub_(low.masked_fill_(flat, 0)).mul_(scale))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Histogram equalization of each channel, in the integer arithmetic of Pillow.

    A byte becomes 255 times the fraction of darker pixels, the brightest pixels not counted.
    float32 divides these integers without a wrong floor.
    """
    g, c, h, w = images.shape
    device = images.device
    first = torch.arange(g * c, dtype=torch.int32, device=device).mul_(256)
    cells = images.view(g * c, h * w).int().add_(first[:, None]).view(-1)  # (channel, byte) in one
    counts = torch.zeros(g * c * 256, dtype=torch.int32, device=device)
    counts.index_add_(0, cells, counts.new_ones(()).expand(len(cells)))  # bincount waits for a GPU
    counts = counts.view(g * c, 256)
    darker = counts.cumsum(1, dtype=torch.int32).sub_(counts)
    rest = darker.masked_fill(darker == h * w, 0).amax(1, keepdim=True)  # than the brightest byte
    step = rest // 255
    value = (darker + step // 2).float().div_(step.clamp(min=1)).clamp_(max=255)
    same = torch.arange(256.0, device=device)
    table = to_uint8(torch.where(step == 0, same, value))  # (g * c, 256)
    return table.view(-1).index_select(0, cells).view(images.shape)


def to_grayscale(pixels: Tensor) -> Tensor:
    """(g, 3, H, W) integers in float32 -> (g, 1, H, W) likewise, rounded down."""
    r, g, b = pixels.split(1, dim=1)
    return (0.2989 * r).add_(0.587 * g).add_(0.114 * b).floor_()


def blend(pixels: Tensor, other: Tensor, magnitudes: Tensor) -> Tensor:
    """pixels + magnitudes * (pixels - other) as bytes, rounded as torchvision does."""
    return to_uint8((pixels * (1 + magnitudes)).sub_(other * magnitudes))


def to_uint8(pixels: Tensor) -> Tensor:
    """Truncate and clamp to 0..255; by way of int16, which halves the time on a CPU."""
    return pixels.short().clamp_(0, 255).to(torch.uint8)


FUNCTIONS = {
    "ShearX": warp,
    "ShearY": warp,
    "TranslateX": warp,
    "TranslateY": warp,
    "Rotate": warp,
    "Brightness": adjust_brightness,
    "Color": adjust_saturation,
    "Contrast": adjust_contrast,
    "Sharpness": adjust_sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "Invert": solarize,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
}
OPERATIONS = tuple(dict.fromkeys(FUNCTIONS.values()))  # each once


def signs_of(name: str) -> tuple[int, int]:
    return (1, -1) if name in SIGNED else (1, 1)


def actions_of(operations: Iterable[tuple[str, int]], levels: int) -> Actions:
    """The actions of (name, level), with both signs where an operation is signed."""
    every = {(name, level, sign) for name, level in operations for sign in signs_of(name)}
    by_operation = sorted(every, key=lambda a: (OPERATIONS.index(FUNCTIONS[a[0]]), a))
    return Actions(tuple(by_operation), levels)


ACTIONS = actions_of([(name, level) for pair in POLICY for name, _, level in pair], LEVELS)
ACTION_OF = torch.tensor(  # (25, 2, 2): sub-policy, first or second operation, sign
    [[[ACTIONS.actions.index((n, v, s)) for s in signs_of(n)] for n, _, v in p] for p in POLICY]
)
