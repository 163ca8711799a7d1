"""A folder that tools/export.py wrote, and what its config.json says, in timm's layout."""

import json
from pathlib import Path
from typing import Any

from helper.errors import UserError
from helper.files import read_regular
from helper.forms import are_channels, are_texts, is_count, is_crop_pct, is_dict, is_text, wrong_in

WEIGHTS, CONFIG = "model.safetensors", "config.json"
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
        wrong = wrong or wrong_in(said["pretrained_cfg"], {"crop_pct": is_crop_pct}, complete=False)
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


def said_of(folder: Path) -> dict[str, Any]:
    """What the folder says of its network and its data, as a checkpoint does."""
    config = read_config(folder / CONFIG)
    pixels = config["pretrained_cfg"]
    return {
        "model_name": config["model_name"],
        "classes": config["label_names"],
        "image_size": pixels["input_size"][2],
        "crop_pct": pixels.get("crop_pct", 1.0),
        "mean": pixels["mean"],
        "std": pixels["std"],
    }
