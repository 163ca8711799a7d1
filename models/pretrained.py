"""Published weights of torchvision's and timm's networks, by the loaders of these packages."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from helper.errors import UserError, one_line
from models.any import OF_TORCHVISION, check_torchvision, import_timm
from models.base import Statistics

HALVES = (0.5, 0.5, 0.5)


class Pretrained(NamedTuple):
    """Weights that a package publishes of a network."""

    label: str  # what the package calls them: 'IMAGENET1K_V1'
    statistics: Statistics  # of the pixels that they were trained on
    read: Callable[[], dict[str, Tensor]]  # their state dict, fetched where it is not there


def pretrained(name: str) -> Pretrained:
    """The package's default weights of `torchvision:NAME` or `timm:NAME`.

    Raises UserError where there are none.
    """
    source, _, rest = name.partition(":")
    if source == "torchvision":
        return of_torchvision(name, rest)
    if source == "timm":
        return of_timm(name, rest)
    raise UserError(
        f"--pretrained: there are published weights of torchvision:NAME and timm:NAME, not of "
        f"{name}: --init FILE starts from a file"
    )


def of_torchvision(name: str, rest: str) -> Pretrained:
    models = check_torchvision(name, rest).models
    weights = models.get_model_weights(rest).DEFAULT
    how, without_aux = weights.transforms(), {"aux_logits": False}
    # GoogLeNet and Inception go from ImageNet's statistics to these by themselves, and not here.
    statistics = (HALVES, HALVES) if rest in OF_TORCHVISION else (how.mean, how.std)

    def make():
        more = without_aux if rest in OF_TORCHVISION else {}
        return models.get_model(rest, weights=weights, **more)

    return Pretrained(weights.name, statistics, lambda: weights_made_by(make, name))


def of_timm(name: str, rest: str) -> Pretrained:
    timm = import_timm(name, rest)
    config = timm.get_pretrained_cfg(rest)
    if not config.has_weights:
        raise UserError(f"--pretrained: timm has no weights of {rest}: --init FILE starts from one")

    def make():
        return timm.create_model(rest, pretrained=True)

    return Pretrained(
        config.tag or "default", (config.mean, config.std), lambda: weights_made_by(make, name)
    )


def weights_made_by(make: Callable[[], torch.nn.Module], name: str) -> dict[str, Tensor]:
    """The state dict of a network that its package makes; UserError where it cannot be had."""
    try:
        with torch.random.fork_rng(devices=[]):
            return make().state_dict()
    except Exception as error:  # whatever a package, and what it reads and fetches, raises
        raise UserError(
            f"the published weights of {name} cannot be had here ({one_line(error)}): fetch them "
            "where there is a network, or give a file with --init"
        ) from None
