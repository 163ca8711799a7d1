"""A trained network by itself, read from a checkpoint or from a folder that tools/export.py wrote.

B batch, S x S images, K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helper.errors import UserError
from helper.extras import import_extra
from helper.files import read_regular
from helper.forms import are_channels, are_texts, is_count, is_dict, is_text, wrong_in
from models.any import Wrapped, build
from models.base import Classifier
from runs import checkpoint

WEIGHTS, CONFIG = "model.safetensors", "config.json"
EXTRA = "requirements-export.txt"
NEEDED = ("classes", "image_size", "mean", "std")  # what a checkpoint has to say of its data


@dataclass(frozen=True)
class Deployed:
    """A network in eval, and what its images have to be like."""

    name: str  # what `models.any.build` makes it of
    network: Classifier
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]  # of pixels from 0 to 1
    std: tuple[float, float, float]

    @property
    def module(self) -> nn.Module:
        """The network; one from elsewhere without what finds its features."""
        return self.network.network if isinstance(self.network, Wrapped) else self.network

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1, (B, 3, S, S) -> what the network reads."""
        mean, std = (torch.tensor(x)[:, None, None] for x in (self.mean, self.std))
        return (pixels - mean) / std


class Normalised(nn.Module):
    """A network behind the normalisation of its images: pixels from 0 to 1 -> logits."""

    def __init__(self, deployed: Deployed):
        super().__init__()
        self.network = deployed.module
        mean, std = (torch.tensor(x)[:, None, None] for x in (deployed.mean, deployed.std))
        self.register_buffer("mean", mean, persistent=False)  # (3, 1, 1)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)"""
        return self.network((images - self.mean) / self.std)


def read_deployed(path: Path, name: str = "") -> Deployed:
    """The network of a checkpoint, or of an exported folder; `name` where it is not in the file.

    Raises UserError where it is none, or does not say what its images have to be like.
    """
    if path.is_dir():
        return of_folder(path)
    name = name or checkpoint.network_of(path, "-m")
    said = checkpoint.data_of(path)
    if missing := [key for key in NEEDED if key not in said]:
        raise UserError(
            f"{path} does not say its {', '.join(missing)}: give a checkpoint of train_teacher.py "
            "or train_student.py, in which they stand"
        )
    deployed = made(name, {key: said[key] for key in NEEDED})
    checkpoint.load_weights(deployed.network, path, name)
    return deployed


def of_folder(folder: Path) -> Deployed:
    """What tools/export.py wrote."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    said = read_config(config)
    checkpoint.check_installed(said["model_name"], config, "-m")
    pixels = said["pretrained_cfg"]
    data = {
        "classes": said["label_names"], "image_size": pixels["input_size"][-1],
        "mean": pixels["mean"], "std": pixels["std"],
    }  # fmt: skip
    if not weights.exists():
        raise UserError(
            f"{folder} has no {WEIGHTS}: export it with --format safetensors, or all, or give the "
            "checkpoint"
        )
    deployed, safetensors = (
        made(said["model_name"], data),
        import_extra("safetensors.torch", EXTRA, str(folder)),
    )
    try:
        deployed.network.load_state_dict(safetensors.load_file(weights))
    except Exception as error:  # whatever its reader raises, and weights of another network
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{weights} is not of {deployed.name} ({line}): export it again") from None
    return deployed


def made(name: str, data: Mapping[str, Any]) -> Deployed:
    """A network with weights of its start, and what its images have to be like."""
    classes, size = tuple(data["classes"]), data["image_size"]
    network = build(name, len(classes), size).eval().requires_grad_(False)
    return Deployed(name, network, classes, size, tuple(data["mean"]), tuple(data["std"]))


CONFIG_FORMS = {"model_name": is_text, "label_names": are_texts, "pretrained_cfg": is_dict}
PIXEL_FORMS = {
    "input_size": lambda value: isinstance(value, list) and len(value) == 3 and is_count(value[2]),
    "mean": are_channels,
    "std": lambda value: are_channels(value) and min(value) > 0,
}


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of an exported folder; UserError where it is none."""
    try:
        said = json.loads(read_regular(path))
        wrong = wrong_in(said, CONFIG_FORMS) or wrong_in(said["pretrained_cfg"], PIXEL_FORMS)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give a checkpoint, or a folder that "
            "tools/export.py wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        wrong = f"it is no JSON: {error}"
    if wrong:
        raise UserError(f"{path} is broken ({wrong}): export the network again")
    return said
