"""How long and how fast a network is trained: the recipe's flags and its learning rate."""

import argparse
import math
from dataclasses import dataclass

from helper.options import (
    count,
    not_negative,
    option,
    positive,
    positive_number,
    share,
    share_below_1,
    whole_numbers,
)

DECAY_EPOCHS, DECAY_EPOCHS_OF = (150, 180, 210), 240  # the published recipe: of 240 epochs


def growing_epochs(text: str) -> tuple[int, ...]:
    """'150,180,210' -> (150, 180, 210), each at least 1 and none smaller than the one before."""
    try:
        epochs = whole_numbers(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of epochs: try 150,180,210"
        ) from None
    if any(epoch < 1 for epoch in epochs) or list(epochs) != sorted(epochs):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no growing list of epochs from 1 on: try 150,180,210"
        )
    return epochs


@dataclass(frozen=True)
class RecipeOptions:
    epochs: int = option(240, "passes over the training set", parse=positive)
    batch_size: int = option(64, "images a step", parse=positive)
    learning_rate: float | None = option(
        None, "start of the rate (default 0.05; what the network asks for where it is another)",
        "--lr", parse=positive_number,
    )  # fmt: skip
    backbone_rate: float | None = option(
        None, "start of the rate of all of the network but its classifier (default: the same)",
        parse=positive_number, added=True,
    )  # fmt: skip
    lr_decay_epochs: tuple[int, ...] | None = option(
        None, "epochs after which the rate falls (default 150,180,210 of 240, in proportion)",
        parse=growing_epochs,
    )  # fmt: skip
    lr_decay_rate: float = option(
        0.1, "what the rate is multiplied with then", parse=positive_number
    )
    schedule: str = option(
        "step", "how the rate falls: by steps, or along a half cosine to 0",
        choices=("step", "cosine"), added=True,
    )  # fmt: skip
    optimizer: str = option(
        "sgd", "sgd, or adamw, which starts at rate 0.001 with weight decay 0.05 unless told other",
        choices=("sgd", "adamw"), added=True,
    )  # fmt: skip
    momentum: float = option(0.9, "SGD momentum", parse=share)
    weight_decay: float = option(5e-4, "of everything that is trained", "--wd", parse=not_negative)
    clip_grad: float = option(
        0.0, "largest norm of all gradients of a step; larger ones are scaled to it; 0: off",
        parse=not_negative, added=True,
    )  # fmt: skip
    ema: float = option(
        0.0, "decay, after each step, of an average of the weights, which is evaluated and kept in "
        "their place: 0.999; 0: off", parse=share_below_1, added=True,
    )  # fmt: skip
    label_smoothing: float = option(
        0.0, "share of a label that goes to all classes alike, in cross-entropy",
        parse=share_below_1, added=True,
    )  # fmt: skip
    balance: str = option(
        "off", "for classes of different sizes: each counts alike in cross-entropy (loss), or is "
        "drawn alike often, images of small ones several times an epoch (sampler)",
        choices=("off", "loss", "sampler"), added=True,
    )  # fmt: skip
    aug: bool = option(False, "AutoAugment behind crop and flip (Cubuk et al., CVPR 2019)")
    randaugment: bool = option(
        False,
        "RandAugment(2, 10) behind crop and flip (Cubuk et al., CVPR Workshops 2020)",
        added=True,
    )
    mixup: float = option(
        0.0, "alpha of mixup (Zhang et al., ICLR 2018): each image has a share of another one in "
        "it, and cross-entropy is on both labels: 0.2; 0: off", parse=not_negative, added=True,
    )  # fmt: skip
    print_freq: int = option(100, "steps between two looks at the losses", parse=positive)
    tb_freq: int = option(
        500, "steps between two TensorBoard points within an epoch", parse=positive
    )
    save_freq: int = option(
        40, "epochs between two kept checkpoints, or resume files where memories are large",
        parse=positive,
    )  # fmt: skip
    num_workers: int = option(
        8, "processes that read image files; data sets in memory need none", parse=count
    )


# What an optimizer has in the place of the recipe's values.
RECIPES: dict[str, dict[str, float]] = {
    "sgd": {},
    "adamw": {"learning_rate": 1e-3, "weight_decay": 0.05},
}
FINE_TUNING_RATES = {"sgd": 0.01, "adamw": 1e-4}  # of networks that start from trained weights


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each epoch, counted from 1.

    It falls behind each of `decay_epochs`; or, with `cosine_epochs`, along half a cosine that
    reaches 0 behind so many epochs (Loshchilov & Hutter, SGDR, ICLR 2017, without restarts).
    """

    start: float
    decay_epochs: tuple[int, ...] = ()
    decay_rate: float = 1.0
    cosine_epochs: int = 0

    def __call__(self, epoch: int) -> float:
        if self.cosine_epochs:
            return self.start * (1 + math.cos(math.pi * (epoch - 1) / self.cosine_epochs)) / 2
        return self.start * self.decay_rate ** sum(epoch > at for at in self.decay_epochs)

    def describe(self) -> str:
        """'0.05, times 0.1 after 150, 180, 210'"""
        decays = ", ".join(map(str, self.decay_epochs))
        falls = f", times {self.decay_rate:g} after {decays}" if decays else ""
        return f"{self.start:g}{', by cosine to 0' if self.cosine_epochs else falls}"

    @property
    def falls_together(self) -> int | None:
        """The first epoch behind which the rate falls several times at once, if there is one."""
        return next((at for at in self.decay_epochs if self.decay_epochs.count(at) > 1), None)


def make_schedule(recipe: RecipeOptions, network_rate: float) -> Schedule:
    """The recipe's schedule; `network_rate` where no --learning_rate is given.

    Decays move in proportion when only the number of epochs is given.
    """
    start = network_rate if recipe.learning_rate is None else recipe.learning_rate
    if recipe.schedule == "cosine":
        return Schedule(start, cosine_epochs=recipe.epochs)
    decay_epochs = decays_in_force(recipe.lr_decay_epochs, recipe.epochs)
    return Schedule(start, decay_epochs, recipe.lr_decay_rate)


def without_meaning(recipe: RecipeOptions) -> dict[str, str]:
    """Options of a recipe that have no meaning beside others: name -> the flag of the other."""
    decays = ("lr_decay_epochs", "lr_decay_rate") if recipe.schedule == "cosine" else ()
    momentum = ("momentum",) if recipe.optimizer == "adamw" else ()
    return dict.fromkeys(decays, "--schedule cosine") | dict.fromkeys(momentum, "--optimizer adamw")


def decays_in_force(decay_epochs: tuple[int, ...] | None, epochs: int) -> tuple[int, ...]:
    """The decays that a run of so many epochs reaches; None stands for the published ones, moved in
    proportion."""
    if decay_epochs is None:
        decay_epochs = in_proportion(DECAY_EPOCHS, DECAY_EPOCHS_OF, epochs)
    return tuple(at for at in decay_epochs if at < epochs)


def in_proportion(decay_epochs: tuple[int, ...], of: int, epochs: int) -> tuple[int, ...]:
    """Where decays that belong to a run of `of` epochs lie in one of `epochs`."""
    return tuple(max(1, math.floor(at * epochs / of + 0.5)) for at in decay_epochs)
