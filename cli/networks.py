"""Trained networks of a command: the teacher, the probed one, the evaluated one."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from cli.choice import StudentResolved
from cli.setting import Setting
from dataset import DATASETS
from dataset.subset import AnySet
from engine.distributed import local_main_process_first
from helper import teachers
from helper.errors import UserError
from helper.options import Resolved, words_in
from models.base import Classifier
from models.ensemble import Ensemble
from runs import checkpoint


class Trained(NamedTuple):
    """A network with the weights of a file."""

    name: str
    path: Path
    sha256: str
    network: Classifier
    usual: bool = True  # whether it lies where the command line looks when it is given no path
    members: tuple["Trained", ...] = ()  # of several as one

    @property
    def facts(self) -> dict[str, Any]:
        """What a run remembers of it."""
        return {
            "model": self.name,
            "path": str(self.path),
            "sha256": self.sha256,
            "parameters": count_parameters(self.network),
        }


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def load_teacher(setting: Setting) -> Trained | None:
    """The frozen teacher: of --path_t, else the published one, fetched where it is not there.

    Several are one whose prediction is the mean of theirs. None where the method has none.
    """
    options = setting.options
    if not options.choice.method.has_teacher:
        return None
    names = words_in(options.model_t)
    paths = words_in(options.path_t) or [fetch_teacher(options, name) for name in names]
    found = [load_one(setting, name, Path(path)) for name, path in zip(names, paths, strict=True)]
    return found[0] if len(found) == 1 else together(found, options)


def together(found: Sequence[Trained], options: StudentResolved) -> Trained:
    """Several teachers as one: the mean of their softmaxes.

    At the temperature of KD and of methods that have this one; at 1 where all losses have others.
    """
    choice = options.choice
    softened = options.alpha or (choice.on_logits and choice.method.one_temperature)
    temperature = options.kd_T if softened else 1.0
    network = Ensemble([one.network for one in found], options.teacher_weights, temperature)
    key = [[one.sha256 for one in found], network.weights, temperature]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    name, path = "+".join(one.name for one in found), ", ".join(str(one.path) for one in found)
    network.eval().requires_grad_(False)
    return Trained(name, Path(path), digest, network, usual=False, members=tuple(found))


def load_one(setting: Setting, name: str, path: Path) -> Trained:
    """The network of a checkpoint, which has to be of this data."""
    options, data = setting.options, setting.data
    network = load_frozen(name, path, data)
    known = checkpoint.data_of(path)
    mean, std = setting.statistics
    own = options.mean_t or known.get("mean", mean), options.std_t or known.get("std", std)
    network.expect_statistics(own, (data.mean, data.std))
    if not options.any_teacher:
        check_same_data(path, known, setting)
    return Trained(name, path, checkpoint.digest(path), network, at_its_place(options))


def at_its_place(options: Resolved) -> bool:
    """Whether the teacher lies where the command line looks when it is given no path."""
    if not options.path_t:
        return True
    usual = None if isinstance(options.path_t, tuple) else usual_teacher(options)
    return usual is not None and usual.resolve() == Path(options.path_t).resolve()


def is_published(dataset: str, name: str) -> bool:
    """Whether a teacher for a data set needs no path: it lies at its place or can be fetched."""
    if dataset == teachers.DATASET:
        return name in teachers.PUBLISHED
    return DATASETS[dataset].has_pretrained(name)


def usual_teacher(options: Resolved) -> Path | None:
    """Where the published teacher lies; None where there is none for this data set."""
    if options.dataset == teachers.DATASET:
        return teachers.path_of(options.model_t, Path(options.save_dir))
    return None


def fetch_teacher(options: Resolved, name: str) -> Path:
    """Path of a published teacher, fetched where it is not there."""
    with local_main_process_first():
        if path := DATASETS[options.dataset].pretrained(name):
            return path
        if options.dataset == teachers.DATASET:
            return teachers.find_or_fetch(name, Path(options.save_dir))
    raise UserError(
        f"the published teachers know {teachers.DATASET}, not {options.dataset}: train one "
        f"with train_teacher.py --dataset {options.dataset} and give it with --path_t"
    )


def check_same_data(path: Path, known: Mapping[str, Any], setting: Setting) -> None:
    """UserError where what a checkpoint says (`known`) is other data or another image size.

    The same images under another name are the same; other images of the same name are said.
    """
    data = setting.data
    if known.get("fingerprint") == setting.fingerprint:
        return
    here = {"data": data.name, "image_size": data.image_size, "classes": list(data.classes)}
    names = {"data": "data set", "image_size": "image size", "classes": "classes"}
    for name, value in here.items():
        if name in known and known[name] != value:
            raise UserError(
                f"the teacher {path} was trained on another {names[name]} "
                f"({shorten(known[name])}) than the student's ({shorten(value)}): give another "
                "with --path_t, or take it all the same with --any_teacher"
            )
    if known.get("images_fingerprint", "") != setting.images and "fingerprint" in known:
        warnings.warn(
            f"the teacher {path} was trained on other images than these of {data.name}",
            stacklevel=2,
        )


def shorten(value: Any) -> str:
    """A value, or the first of many."""
    if isinstance(value, list) and len(value) > 5:
        return f"{', '.join(map(str, value[:5]))} and {len(value) - 5} more"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def load_frozen(name: str, path: Path, data) -> Classifier:
    """A network with the weights of a checkpoint, in eval and never trained."""
    known_as = data.networks.get(name, name)
    return checkpoint.read_network(known_as, path, len(data.classes), data.image_size)


def probed_network(options: Resolved) -> tuple[str, Path]:
    """Name and checkpoint of the network whose features are probed."""
    if not options.path_s:
        raise UserError("no --path_s: give the checkpoint whose features are to be probed")
    name = options.model_s or checkpoint.network_of(options.path_s, "--model_s")
    return name, Path(options.path_s)


def load_backbone(fresh: Classifier, path: Path, name: str) -> None:
    """Load all of a checkpoint but its classifier, which was for other classes."""
    own, weights = fresh.state_dict(), checkpoint.weights_of(path)
    head = {key for key in own if key.startswith(f"{fresh.head_name}.")}
    weights |= {key: own[key] for key in head}
    checkpoint.load_into(fresh, weights, path, name)


def as_trained(data: AnySet, path: str) -> AnySet:
    """The data normalised as the checkpoint's was in training, where it says how.

    UserError where it was trained for other classes or on images of another size.
    """
    known = checkpoint.data_of(path)
    if "classes" in known and list(known["classes"]) != list(data.classes):
        named = {"dataset", "data"} & known.keys()
        own = "without -d its own data set is taken, and --data_dir says where that lies"
        advice = own if named else "-d and --data_dir say which data it is of"
        raise UserError(
            f"{path} was trained for {describe_classes(known['classes'])}, and {data.name} has "
            f"{describe_classes(data.classes)}: {advice}"
        )
    if known.get("image_size", data.image_size) != data.image_size:
        raise UserError(
            f"{path} was trained on images of size {known['image_size']}, and these have size "
            f"{data.image_size}: give --image_size {known['image_size']} where -d has that flag"
        )
    if {"mean", "std"} <= known.keys():
        return replace(data, mean=tuple(known["mean"]), std=tuple(known["std"]))
    return data


def describe_classes(classes: Sequence[str]) -> str:
    more = ", ..." if len(classes) > 3 else ""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{more})"
