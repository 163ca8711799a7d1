"""Weights on disk: written whole or not at all, read without running anybody's code."""

import argparse
import collections
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helper.errors import UserError
from helper.files import write_whole
from models import MODELS

# What RepDistiller-format files hold beside tensors and plain containers.
HARMLESS = [argparse.Namespace, collections.OrderedDict, collections.defaultdict]

UNSAFE = re.compile(r"unsupported (?:global|class)[: ]+(?:global )?([\w.]+)", re.IGNORECASE)


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, never half of one."""
    write_whole(path, lambda file: torch.save(content, file))


def load(path: str | Path) -> Any:
    """Read a checkpoint file onto the CPU; UserError where it is missing, broken or unsafe."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint {path}: give the path of a .pth file")
    if path.is_dir():
        names = sorted(p.name for p in path.glob("*.pth"))
        found = [name for name in names if not name.startswith(("resume.", "memories_"))]
        listed = f"one of its files: {', '.join(found)}" if found else "a .pth file; it holds none"
        raise UserError(f"{path} is a folder: give {listed}")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := UNSAFE.search(str(error)):
            raise UserError(
                f"{path} would run code when loaded ({found[1]}): refused; save its weights alone"
            ) from None
        raise broken(path) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError):
        raise broken(path) from None
    except (AttributeError, AssertionError, UnicodeDecodeError):
        raise broken(path) from None


def broken(path: Path) -> UserError:
    return UserError(
        f"{path} is no checkpoint, or a truncated one ({path.stat().st_size:,} bytes): "
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
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no weights: its entries are {', '.join(map(str, content))}")
    return {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in content.items()}


def load_weights(network: nn.Module, path: str | Path, name: str) -> None:
    """Load a checkpoint strictly into the network called `name`.

    Only BatchNorm's `num_batches_tracked` may be missing: old files have none. Raises UserError
    that names the first key that does not fit, with both shapes.
    """
    load_into(network, weights_of(path), path, name)


def load_into(network: nn.Module, weights: Mapping[str, Tensor], path, name: str) -> None:
    """The same of weights that were read from `path` already."""
    own = network.state_dict()
    check_fit(own, weights, path, name)
    network.load_state_dict({k: weights.get(k, own[k]) for k in own})


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path, name: str) -> None:
    """UserError that says in one line why `weights`, from `path`, cannot be those of `name`."""
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    extra = [k for k in weights if k not in own]
    reshaped = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    problems = []
    if reshaped:
        key = reshaped[0]
        problems.append(
            f"{key} is {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in {name}"
        )
    if missing:
        problems.append(f"{missing[0]} {tuple(own[missing[0]].shape)} is missing")
    if extra:
        problems.append(f"{extra[0]} {tuple(weights[extra[0]].shape)} is not in {name}")
    if problems:
        rest = len(missing) + len(extra) + len(reshaped) - len(problems)
        more = f" (and {rest} more)" if rest else ""
        raise UserError(f"{path}{describe(path)} does not fit {name}: {'; '.join(problems)}{more}")


def describe(path: str | Path) -> str:
    """What a checkpoint says of itself: ' (resnet20 with 10 classes)'; empty where it is silent."""
    content = load(path)
    if not isinstance(content, Mapping) or not (known := content.get("model_name")):
        return ""
    classes = content.get("classes")
    return f" ({known} with {len(classes)} classes)" if classes else f" ({known})"


def model_name(path: str | Path) -> str | None:
    """Which network a checkpoint is of: what the file says, else what its folder is called.

    RepDistiller's folders start with the name: `wrn_40_2_vanilla`, `resnet20_cifar10_trial_1`.
    """
    path = Path(path)
    content = load(path)
    if isinstance(content, Mapping) and isinstance(content.get("model_name"), str):
        return content["model_name"]
    folder = path.absolute().parent.name
    fitting = [name for name in MODELS if f"{folder}_".startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def network_of(path: str | Path, flag: str) -> str:
    """The same, or UserError that asks for the flag that says it."""
    if not (name := model_name(path)):
        raise UserError(f"{path} does not say which network it is of: give its name with {flag}")
    return name


def data_of(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of the data it was trained on; empty where it is silent.

    `dataset`, `data_options`, `data` (the set's name), `classes`, `image_size`, `mean`, `std`.
    """
    content = load(path)
    if not isinstance(content, Mapping):
        return {}
    names = ("dataset", "data_options", "data", "classes", "image_size", "mean", "std")
    names += ("fingerprint",)
    return {name: content[name] for name in names if name in content}
