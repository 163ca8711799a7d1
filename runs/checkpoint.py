"""Weights on disk: written whole or not at all, read without running anybody's code."""

import argparse
import collections
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helper.config import in_file
from helper.errors import UserError
from helper.extras import import_extra
from helper.files import sha256, write_whole
from helper.forms import (
    Form,
    are_channels,
    are_options,
    are_texts,
    is_count,
    is_crop_pct,
    is_text,
    wrong_in,
)
from models import MODELS
from models.any import build
from models.base import Classifier
from models.projected import PREFIX
from runs.exported import CONFIG, WEIGHTS, said_of

# What RepDistiller-format files hold beside tensors and plain containers.
HARMLESS = [argparse.Namespace, collections.OrderedDict, collections.defaultdict]

UNSAFE = re.compile(r"unsupported (?:global|class)[: ]+(?:global )?([\w.]+)", re.IGNORECASE)

# What a checkpoint may say of itself.
SAID: dict[str, Form] = {
    "model_name": is_text,
    "dataset": is_text,
    "data": is_text,
    "fingerprint": is_text,
    "images_fingerprint": is_text,
    "classes": are_texts,
    "image_size": is_count,
    "crop_pct": is_crop_pct,
    "mean": are_channels,
    "std": lambda value: are_channels(value) and min(value) > 0,
    "data_options": are_options,
}

INSTALLED = ("torchvision:", "timm:")  # prefixes of networks that a file may name

SEAL, DIGITS = b"sha256 ", 64  # the comment of the zip that torch.save writes: its very end


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, never half of one. Its end is the sha256 of all that stands before."""

    def write(file):
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # what the disk said
                raise error.__context__ from None
            raise
        file.seek(-2, os.SEEK_END)  # the length of the zip's comment
        file.write((len(SEAL) + DIGITS).to_bytes(2, "little") + SEAL)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").hexdigest().encode())

    write_whole(path, write)


def load(path: str | Path) -> Any:
    """Read a checkpoint onto the CPU; UserError where it is missing, broken or unsafe.

    It is a file, or a folder that tools/export.py wrote.
    """
    path = Path(path)
    if is_exported(path):
        return {**said_of(path), "model": read_safetensors(exported_weights(path))}
    try:
        check_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it works, or is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := UNSAFE.search(str(error)):
            raise UserError(
                f"{path} would run code when loaded ({found[1]}): refused; save its weights alone"
            ) from None
        raise broken(path) from None
    except Exception:  # whatever broken bytes lead to
        raise broken(path) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; UserError where it is broken."""
    safetensors = import_extra("safetensors.torch", "requirements-export.txt", str(path))
    try:
        return safetensors.load_file(path)
    except Exception:  # whatever broken bytes lead to
        raise broken(path) from None


def is_exported(path: str | Path) -> bool:
    """Whether it is a folder that tools/export.py wrote, to judge by what lies there."""
    return os.path.exists(Path(path) / CONFIG)


def is_there(path: str | Path) -> bool:
    """Whether there is a file, or an exported folder."""
    return os.path.isfile(path) or is_exported(path)


def exported_weights(folder: Path) -> Path:
    """The file of weights in an exported folder; UserError where there is none."""
    if not (path := folder / WEIGHTS).exists():
        raise UserError(
            f"{folder} has no {WEIGHTS}: export it with --format safetensors, or all, or give the "
            "checkpoint"
        )
    check_file(path)
    return path


def digest(path: str | Path) -> str:
    """sha256 of a checkpoint, in hex; of an exported folder, of what is read there."""
    if not is_exported(path := Path(path)):
        return sha256(path)
    both = "".join(map(sha256, (path / CONFIG, exported_weights(path))))
    return hashlib.sha256(both.encode()).hexdigest()


def check_file(path: Path) -> None:
    """UserError unless there is a file, with the bytes that were written."""
    if not path.exists():
        raise UserError(f"no checkpoint {path}: give the path of a file, or of an exported folder")
    if path.is_dir():
        names = sorted(p.name for p in path.glob("*.pth"))
        found = [name for name in names if not name.startswith(("resume.", "memories_"))]
        listed = f"one of its files ({', '.join(found)})" if found else "a checkpoint"
        raise UserError(
            f"{path} is a folder without {CONFIG}: give {listed}, or one that tools/export.py wrote"
        )
    if not path.is_file():
        raise UserError(f"{path} is no regular file: give the path of a .pth file")
    if not is_as_written(path):
        raise broken(path)


def is_as_written(path: Path) -> bool:
    """Whether the checksums of a file are right: its sha256, else those of a zip's entries.

    What torch.save wrote before it wrote zips has none.
    """
    with open(path, "rb") as file:
        start, size = file.read(4), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(SEAL) - DIGITS))
        end = file.read()
    if end.startswith(SEAL):
        return sha256(path, size - DIGITS).encode() == end[len(SEAL) :]
    if start != b"PK\3\4":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Else it is no file of torch.save, and may be endless, or an entry be passed over.
            plain = not any(entry.compress_type or entry.external_attr for entry in entries)
            within = sum(entry.file_size for entry in entries) <= size
            return plain and within and archive.testzip() is None
    except Exception:  # whatever broken bytes lead to
        return False


def broken(path: Path) -> UserError:
    return UserError(
        f"{path} is no checkpoint, or a damaged one ({path.stat().st_size:,} bytes): "
        "copy or train it again"
    )


def weights_of(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file of whatever layout.

    Either the file is the state dict or it keeps it under `model`, `state_dict` or `student`.
    Prefixes that DataParallel and torch.compile leave in the keys are taken off.
    """
    content = load(path)
    for key in ("model", "state_dict", "student"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no weights: expected a dict with a state dict under 'model'")
    check_tensors(content, path)
    return {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in content.items()}


def check_tensors(weights: Mapping[Any, Any], path: str | Path) -> None:
    """UserError unless names lead to tensors of plain numbers."""
    for key, value in weights.items():
        if not isinstance(key, str):
            raise UserError(f"{path} holds no weights: it has keys of type {type(key).__name__}")
        if not isinstance(value, Tensor):
            entries = [key for key in weights if isinstance(key, str)]
            more = ", ..." if len(entries) > 9 else ""
            raise UserError(
                f"{path} holds no weights: its entries are {', '.join(entries[:9])}{more}"
            )
        if not is_plain(value):
            raise UserError(f"{path} holds no plain numbers under {key}: save it as a dense tensor")


def read_network(name: str, path: str | Path, classes: int, image_size: int) -> Classifier:
    """The network called `name` with the weights of a checkpoint, in eval and never trained."""
    with in_file(str(path)):
        network = build(name, classes, image_size)
    load_weights(network, path, f"{name} with {classes} classes")
    return network.eval().requires_grad_(False)


def load_weights(network: nn.Module, path: str | Path, name: str) -> None:
    """Load a checkpoint strictly into the network called `name`.

    Only BatchNorm's `num_batches_tracked` may be missing: old files have none. Raises UserError
    that names the first key that does not fit, with both shapes.
    """
    load_into(network, weights_of(path), path, name)


def load_into(network: nn.Module, weights: Mapping[str, Tensor], path, name: str) -> None:
    """The same of weights that were read from `path` already."""
    own = network.state_dict()
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    weights = {**counters, **weights}
    check_fit(own, weights, path, name)
    network.load_state_dict(weights)


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path, name: str) -> None:
    """UserError that says in one line why `weights`, from `path`, cannot be those of `name`."""
    missing = [k for k in own if k not in weights]
    extra = [k for k in weights if k not in own]
    reshaped = [k for k in own if k in weights and shape_and_kind(own[k], weights[k])]
    problems = []
    if reshaped:
        key = reshaped[0]
        there, here = shape_and_kind(own[key], weights[key])
        problems.append(f"{key} is {there} in the file, {here} in {name}")
    if missing:
        problems.append(f"{missing[0]} {tuple(own[missing[0]].shape)} is missing")
    if extra:
        problems.append(f"{extra[0]} {tuple(weights[extra[0]].shape)} is not in {name}")
    if problems:
        rest = len(missing) + len(extra) + len(reshaped) - len(problems)
        more = f" (and {rest} more)" if rest else ""
        raise UserError(f"{path}{describe(path)} does not fit {name}: {'; '.join(problems)}{more}")


def check_optimizer(stage, state: Mapping[str, Any], path: Path) -> None:
    """UserError unless `state`, from `path`, has momenta for what the stage's optimizer trains.

    torch compares neither shapes nor types, and fused steps write beyond what is too small.
    """
    names = {*stage.momentum_names}
    parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
    stored, step = state.get("state"), torch.zeros(())
    fits = isinstance(stored, dict) and bool(stored) == bool(names)
    for place, buffers in stored.items() if fits else ():
        fits = fits and type(place) is int and 0 <= place < len(parameters)
        fits = fits and isinstance(buffers, dict) and bool(buffers) and buffers.keys() <= names
        fits = fits and ("step" not in names or buffers.keys() == names)  # AdamW has all or none
        fits = fits and all(
            is_like(value, step if name == "step" else parameters[place])
            for name, value in buffers.items()
        )
    if not fits:
        raise UserError(
            f"{path} has another optimizer's state than this run's: --overwrite to start it anew"
        )


def is_like(value: Any, own: Tensor) -> bool:
    """Whether it is a tensor of plain numbers that can take the place of another."""
    return (
        isinstance(value, Tensor)
        and is_plain(value)
        and (value.shape, value.dtype) == (own.shape, own.dtype)
    )


def is_plain(value: Tensor) -> bool:
    """Whether it holds its numbers one by one: it is not sparse, quantized or without storage."""
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def shape_and_kind(own: Tensor, given: Tensor) -> tuple[str, str] | None:
    """How a tensor differs from the one whose place it takes: ('(3,)', '(4,)'); None where not.

    A number with a fraction and one without are no substitute for one another, but for a counter.
    """
    if own.shape != given.shape:
        return str(tuple(given.shape)), str(tuple(own.shape))
    if given.is_floating_point() != own.is_floating_point() and own.dim():
        return str(given.dtype), str(own.dtype)
    return None


def describe(path: str | Path) -> str:
    """What a checkpoint says of itself: ' (resnet20 with 10 classes)'; empty where it is silent."""
    known = said_by(path)
    if "model_name" not in known:
        return ""
    classes = f" with {len(known['classes'])} classes" if "classes" in known else ""
    return f" ({known['model_name']}{classes})"


def model_name(path: str | Path) -> str | None:
    """Which network a checkpoint is of: what the file says, else what its folder is called.

    RepDistiller's folders start with the name: `wrn_40_2_vanilla`, `resnet20_cifar10_trial_1`.
    """
    if known := said_by(path).get("model_name"):
        return known
    folder = Path(path).absolute().parent.name
    fitting = [name for name in MODELS if f"{folder}_".startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def network_of(path: str | Path, flag: str) -> str:
    """The same, or UserError that asks for the flag that says it.

    A file's word is never taken for a function to import: that would run code of its choice.
    """
    if not (name := model_name(path)):
        raise UserError(f"{path} does not say which network it is of: give its name with {flag}")
    inner = name.removeprefix(PREFIX)
    if ":" in inner and not inner.startswith(INSTALLED):
        raise UserError(
            f"{path} says that it is of {name}, a function of somebody's module, which a file "
            f"cannot have run: {flag} {name} where it is yours"
        )
    return name


def data_of(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of the data it was trained on; empty where it is silent.

    `dataset`, `data_options`, `data` (the set's name), `classes`, `image_size`,
    `crop_pct`, `mean`, `std`.
    """
    return {name: value for name, value in said_by(path).items() if name != "model_name"}


def said_by(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of its network and its data; UserError where that cannot be."""
    content = said_of(Path(path)) if is_exported(path) else load(path)
    if not isinstance(content, dict) or all(isinstance(v, Tensor) for v in content.values()):
        return {}
    if wrong := wrong_in(content, SAID, complete=False):
        raise UserError(
            f"{path} says what cannot be ({wrong}): save its weights alone, as "
            "{'model': state_dict}"
        )
    return {name: content[name] for name in SAID if name in content}
