"""AutoAugment's CIFAR policy for many images at once, as a pure function of (seed, epoch, sample).

Cubuk et al., AutoAugment, CVPR 2019, table 7, with the magnitudes of torchvision's AutoAugment.
The pixels are those of torchvision's uint8 tensor operations on a CPU (nearest neighbour, black
outside), bit for bit, up to 65,793 pixels an image. M images of 3 channels, H x W, both at least 3.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from dataset.augment import draw

# The two operations of each of the 25 sub-policies: name, chance in tenths, level of 0..9, which
# is 0 where an operation has none
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
SIGNED = {  # the strength of the levels ends here; a shift ends at this share of the image
    "ShearX": 0.3,  # pixels a pixel
    "ShearY": 0.3,
    "TranslateX": 150 / 331,
    "TranslateY": 150 / 331,
    "Rotate": 30.0,  # degrees, anticlockwise
    "Brightness": 0.9,  # how far to go from the image without it, beyond the image itself
    "Color": 0.9,
    "Contrast": 0.9,
    "Sharpness": 0.9,
}
# What a number is drawn for, as in dataset.augment and far from its own; a pair is the two rounds
SUB_POLICY, CHANCE, SIGN = 100, (101, 102), (103, 104)


class Picks(NamedTuple):
    """Each image's sub-policy, and of its two operations which are applied and which way."""

    policy: Tensor  # (M,) int64 in [0, 25)
    applied: Tensor  # (2, M) bool
    negative: Tensor  # (2, M) int64, 0 or 1; counts for signed operations only


def auto_augment(images: Tensor, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Do to each image what its sample's sub-policy of this epoch asks for.

    images: (M, 3, H, W) uint8 on any device, left as they are; index: (M,) int64, the samples'
    numbers -> (M, 3, H, W) uint8. The choices are made and sorted on the CPU, so an index that lies
    there already spares waiting for a GPU.
    """
    sources, strengths = tables(*images.shape[2:], images.device)
    wanted, place = actions(pick(seed, epoch, index.cpu())).sort(dim=1, stable=True)  # (2, M) each
    kinds = len(OPERATIONS) + 1  # the last one: nothing to do
    sizes = [torch.bincount(row, minlength=kinds).tolist() for row in KIND_OF[wanted]]
    plan = torch.stack([wanted, place, place.argsort(dim=1)], dim=1)  # (2, 3, M)
    for of_round, (wanted, place, back) in zip(sizes, plan.to(images.device, non_blocking=True)):
        groups = list(images.index_select(0, place).split(of_round))  # one kind each
        for i, (operation, action) in enumerate(zip(OPERATIONS, wanted.split(of_round))):
            if len(action):
                table = sources if operation is move else strengths
                groups[i] = operation(groups[i], table.index_select(0, action))
        images = torch.cat(groups).index_select(0, back)
    return images


def pick(seed: int, epoch: int, index: Tensor) -> Picks:
    """What happens to samples `index` (M,) in an epoch: uniform sub-policies and signs."""
    policy = (draw(seed, epoch, SUB_POLICY, index) * len(POLICY)) >> 32
    tenths = torch.tensor([[chance for _, chance, _ in pair] for pair in POLICY]).T  # (2, 25)
    chance = torch.stack([draw(seed, epoch, purpose, index) for purpose in CHANCE])
    sign = torch.stack([draw(seed, epoch, purpose, index) for purpose in SIGN])
    return Picks(policy, chance * 10 < tenths[:, policy] << 32, sign >> 31)


def actions(picks: Picks) -> Tensor:
    """The place in ACTIONS of what each round does: (2, M) int64, their number where nothing."""
    rounds = torch.arange(2)[:, None]
    return torch.where(picks.applied, ACTION_OF[picks.policy, rounds, picks.negative], len(ACTIONS))


@functools.lru_cache(maxsize=8)
def tables(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What operations need to know: of each move its `source`, of each action its `strength`.

    -> (number of moves, H * W) int64, (number of actions, 1, 1, 1) float32.
    """
    strengths = [strength(name, level, h, w) * sign for name, level, sign in ACTIONS]
    moves = [source(a[0], s, h, w) for a, s in zip(ACTIONS, strengths) if KINDS[a[0]] is move]
    return torch.stack(moves).to(device), torch.tensor(strengths).view(-1, 1, 1, 1).to(device)


def strength(name: str, level: int, h: int, w: int) -> float:
    """How much a level is: pixels, slope, degrees, a blend's surplus, a byte mask, a threshold."""
    if name in SIGNED:
        size = {"TranslateX": w, "TranslateY": h}.get(name, 1)
        value = torch.linspace(0, SIGNED[name] * size, LEVELS)[level].item()
        return float(int(value)) if name.startswith("Translate") else value
    if name == "Posterize":
        return 256.0 - 2 ** round(level * 4 / (LEVELS - 1))  # drops up to four bits
    if name == "Solarize":
        return torch.linspace(255, 0, LEVELS)[level].item()
    return 0.0  # no levels; a threshold of 0 inverts


def source(name: str, amount: float, h: int, w: int) -> Tensor:
    """Where a move takes each pixel from: (H * W,) int64, 1 + its place, or 0 for outside.

    torchvision's float32 grid, step by step, and the same sampling, here of the places themselves:
    ties between two pixels fall as they do there.
    """
    turn = math.radians(-amount)
    # The way back, in pixels from the centre; a shear leaves the first row or column in its place
    matrix = {
        "ShearX": [1, amount, amount * h / 2, 0, 1, 0],
        "ShearY": [1, 0, 0, amount, 1, amount * w / 2],
        "TranslateX": [1, 0, -amount, 0, 1, 0],
        "TranslateY": [1, 0, 0, 0, 1, -amount],
        "Rotate": [math.cos(turn), math.sin(turn), 0, -math.sin(turn), math.cos(turn), 0],
    }[name]
    back = torch.tensor(matrix, dtype=torch.float32).view(2, 3).T / torch.tensor([w / 2, h / 2])
    y, x = (torch.linspace(0.5 - size / 2, size / 2 - 0.5, size) for size in (h, w))
    target = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones(h, w)], dim=2)
    grid = target.view(1, h * w, 3).bmm(back[None]).view(1, h, w, 2)
    places = torch.arange(1.0, h * w + 1).view(1, 1, h, w)
    return grid_sample(places, grid, mode="nearest", align_corners=False).long().view(-1)


def move(images: Tensor, sources: Tensor) -> Tensor:
    """Shear, shift or turn: images (g, 3, H, W), sources (g, H * W) from `source`."""
    pixels = pad(images.flatten(2), (1, 0))  # place 0 is black
    return pixels.gather(2, sources[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


# The operations below: images (g, 3, H, W) uint8, strengths (g, 1, 1, 1) -> (g, 3, H, W) uint8


def brighten(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from black, or towards it."""
    return to_bytes(images.float().mul_(1 + strengths))


def colour(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from the grey image."""
    pixels = images.float()
    return blend(pixels, grey(pixels), strengths)


def contrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from the mean grey."""
    pixels = images.float()
    total = grey(pixels).sum(dim=(2, 3), keepdim=True)
    # a tensor as divisor: a GPU multiplies by the inverse of a number, which rounds differently
    return blend(pixels, total / torch.full_like(total, pixels[0, 0].numel()), strengths)


def sharpen(images: Tensor, strengths: Tensor) -> Tensor:
    """Away from the image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13, which keeps the border."""
    whole = images.short()
    rows = whole[:, :, :-2] + whole[:, :, 1:-1] + whole[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    box += 4 * whole[..., 1:-1, 1:-1]
    pixels = images.float()
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = box.float().mul_(1 / 13).round_()  # thirteenths never tie
    return blend(pixels, smooth, strengths)


def posterize(images: Tensor, masks: Tensor) -> Tensor:
    """Keep the upper bits."""
    return images & masks.to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the bytes from a threshold on; from 0 on it inverts all."""
    chosen = images >= thresholds.ceil().to(torch.uint8)
    return images ^ chosen.to(torch.uint8).mul_(255)  # a tenth of the time of torch.where


def stretch(images: Tensor, _: Tensor) -> Tensor:
    """AutoContrast: each channel's darkest byte to 0 and its brightest to 255."""
    low, high = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    flat = low == high  # stays as it is
    scale = (255 / (high - low)).masked_fill_(flat, 1)
    return to_bytes(images.float().sub_(low.masked_fill_(flat, 0)).mul_(scale))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each byte of a channel to 255 times the share of darker pixels, those of its brightest aside.

    Whole numbers as in Pillow; float32 divides them without a wrong floor.
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
    table = to_bytes(torch.where(step == 0, same, value))  # (g * c, 256)
    return table.view(-1).index_select(0, cells).view(images.shape)


def grey(pixels: Tensor) -> Tensor:
    """(g, 3, H, W) whole numbers in float32 -> (g, 1, H, W) likewise, rounded down."""
    r, g, b = pixels.split(1, dim=1)
    return (0.2989 * r).add_(0.587 * g).add_(0.114 * b).floor_()


def blend(pixels: Tensor, other: Tensor, strengths: Tensor) -> Tensor:
    """pixels + strengths * (pixels - other) as bytes, rounded as torchvision does."""
    return to_bytes((pixels * (1 + strengths)).sub_(other * strengths))


def to_bytes(pixels: Tensor) -> Tensor:
    """Cut to whole numbers in 0..255; by way of int16, which halves the time on a CPU."""
    return pixels.short().clamp_(0, 255).to(torch.uint8)


KINDS = {
    "ShearX": move,
    "ShearY": move,
    "TranslateX": move,
    "TranslateY": move,
    "Rotate": move,
    "Brightness": brighten,
    "Color": colour,
    "Contrast": contrast,
    "Sharpness": sharpen,
    "Posterize": posterize,
    "Solarize": solarize,
    "Invert": solarize,
    "AutoContrast": stretch,
    "Equalize": equalize,
}
OPERATIONS = tuple(dict.fromkeys(KINDS.values()))  # each once


def signs(name: str) -> tuple[int, int]:
    return (1, -1) if name in SIGNED else (1, 1)


# Every (name, level, sign) of the policy once, those of an operation side by side
ACTIONS = sorted(
    {(name, level, sign) for pair in POLICY for name, _, level in pair for sign in signs(name)},
    key=lambda action: (OPERATIONS.index(KINDS[action[0]]), action),
)
KIND_OF = torch.tensor([OPERATIONS.index(KINDS[a[0]]) for a in ACTIONS] + [len(OPERATIONS)])
ACTION_OF = torch.tensor(  # (25, 2, 2): sub-policy, round, sign
    [[[ACTIONS.index((n, v, s)) for s in signs(n)] for n, _, v in pair] for pair in POLICY]
)
