"""RandAugment for many images at once, as a pure function of (seed, epoch, sample).

Cubuk et al., RandAugment, CVPR Workshops 2020, with the operations and magnitudes of torchvision's
RandAugment(2, 10). The pixels are those of `dataset.autoaugment`. M images.
"""

import torch
from torch import Tensor

from dataset.augment import draw
from dataset.autoaugment import FUNCTIONS, actions_of, apply_actions, signs_of

LEVELS, LEVEL = 31, 10
NAMES = sorted(FUNCTIONS.keys() - {"Invert"})  # and one that changes nothing
# Purposes of `draw`, apart from those of dataset.augment; for the first and second operation
OPERATION, SIGN = (200, 201), (202, 203)

ACTIONS = actions_of([(name, LEVEL) for name in NAMES], LEVELS)
ACTION_OF = torch.tensor(  # (14, 2): operation, sign
    [[ACTIONS.actions.index((name, LEVEL, sign)) for sign in signs_of(name)] for name in NAMES]
    + [[len(ACTIONS.actions)] * 2]
)


def rand_augment(images: Tensor, seed: int, epoch: int, index: Tensor, salt: int = 0) -> Tensor:
    """Apply to each image the two operations that its sample has in this epoch.

    images: (M, 3, H, W) uint8 on any device, not changed; index: (M,) int64, the numbers of the
    samples; `salt` is added to what is drawn -> (M, 3, H, W) uint8. Nothing waits for a GPU where
    the index is on the CPU.
    """
    return apply_actions(images, choose_actions(seed, epoch, index.cpu(), salt), ACTIONS)


def choose_actions(seed: int, epoch: int, index: Tensor, salt: int = 0) -> Tensor:
    """Indices into ACTIONS of two operations, each uniform with a uniform sign: (M,) -> (2, M)"""
    number = torch.stack([draw(seed, epoch, purpose + salt, index) for purpose in OPERATION])
    sign = torch.stack([draw(seed, epoch, purpose + salt, index) for purpose in SIGN])
    return ACTION_OF[(number * len(ACTION_OF)) >> 32, sign >> 31]
