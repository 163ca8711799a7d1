"""Which experiment a command line is: its options in force, its name."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from cli.setting import Setting
from dataset.augment import AUGMENTATION_VERSION
from dataset.base import StreamedSet
from dataset.folder import DECODING_VERSION
from engine.distributed import world_size
from engine.fit import DROPOUT_VERSION
from engine.objective import PROBE_VERSION
from engine.recipe import decays_in_force
from helper.options import UNKNOWN, words_in
from models.any import source_of
from runs.code import own_code
from runs.experiment import Experiment, canonical, identity_of, plain, token

LONGEST_SOURCE = 70  # characters


class Title(NamedTuple):
    """The beginning of an experiment's name."""

    text: str
    options: Set[str]  # names of those that it tells, or its end


def make_experiment(kind: str, setting: Setting, title: Title, source: str = "") -> Experiment:
    """The experiment of a command line; `source` is the sha256 of the checkpoint that it reads."""
    options = setting.options
    values = effective(options.values, setting)
    usual = effective({**options.values, **options.usual}, setting) | {"processes": 1}
    code = code_versions(kind, setting)
    idle = options.idle | ({"fraction_seed"} if options.train_fraction == 1 else set())
    idle |= set() if options.val_fraction else {"val_seed"}
    if not isinstance(setting.data, StreamedSet):  # the fingerprint is of the pixels
        idle |= {"in_memory", "hash_content"}
    elif "in_memory" in values:
        values["in_memory"] = "off"  # whoever decided it: other code draws and cuts its crops
        idle -= {"in_memory"}
    for name in ("peer_rate", "backbone_rate"):  # None where they are the rate
        idle = idle - {name} if values.get(name) else idle | {name}
    identity = identity_of({name: value for name, value in values.items() if name not in idle})
    unusual = [
        name
        for name, value in identity
        if name not in title.options and canonical(value) != canonical(usual[name])
    ]
    return Experiment(
        kind=kind,
        options=identity,
        data=setting.fingerprint,
        source=source,
        code=tuple(sorted(code.items())),
        title=title.text,
        unusual=tuple(unusual),
        trial=options.trial,
    )


def effective(values: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Options with the values that take effect, for those whose default depends on others."""
    options, values = setting.options, dict(values)
    own = setting.peer_rate_by(values) if values.get("peer") else None
    if values["learning_rate"] is None:
        values["learning_rate"] = setting.network_rate
    if own:
        values["peer_rate"] = None if own == values["learning_rate"] else own
    if values["backbone_rate"] == values["learning_rate"]:
        values["backbone_rate"] = None
    if values["lr_decay_epochs"] is not UNKNOWN:
        values["lr_decay_epochs"] = decays_in_force(values["lr_decay_epochs"], options.epochs)
    if values["seed"] is None:
        values["seed"] = options.trial
    for name in ("pretrained", "init"):  # which weights, and not where they lie
        if values.get(name):
            values[name] = setting.start.label
    if "image_size" in values:
        values["image_size"] = values["image_size"] or setting.data.image_size
    # Without synchronised BatchNorm each process has statistics of its own share; and each draws
    # its own dropout.
    alike = values.pop("sync_bn") and not (world_size() > 1 and setting.draws_in_training)
    values["processes"] = 1 if alike else world_size()
    return values


def code_versions(kind: str, setting: Setting) -> dict[str, str]:
    """Versions of code that changes numbers: of the augmentation, decoding, the probe and dropout,
    and of chosen files that are no part of a commit of this toolkit: methods, views and networks of
    one's own."""
    options, versions = setting.options, {"augmentation": str(AUGMENTATION_VERSION)}
    if isinstance(setting.data, StreamedSet):  # of which the fingerprint knows no pixels
        versions["decoding"] = str(DECODING_VERSION)
    if kind == "probe":
        versions["probe"] = str(PROBE_VERSION)
    elif setting.draws_in_training:
        versions["dropout"] = str(DROPOUT_VERSION)
    chosen = {}
    if kind == "student":
        chosen[f"method {options.distill}"] = options.choice.method
        chosen |= {f"view {name}": view for name, view in options.choice.views.items()}
    for name in ("model", "model_s", "model_t", "peer"):
        for network in words_in(options.values.get(name, "")):
            chosen[f"network {network}"] = source_of(network)
    for name, entry in chosen.items():
        if digest := own_code(entry):
            versions[name] = digest
    return versions


def teacher_title(setting: Setting) -> Title:
    """'resnet20_cifar100'"""
    text = f"{plain(setting.options.model)}_{setting.data.name}"
    return Title(text, {"model", "dataset"})


def student_title(setting: Setting, teacher_tag: str) -> Title:
    """'S_resnet8x4_T_resnet32x4_cifar100_kd_sdd-1-2_r_0.1_a_0.9_b_0'; without a teacher no T."""
    options = setting.options
    views = options.choice.views
    weights = {"r": options.gamma, "a": options.alpha, "b": options.beta}
    names = "_".join(map(plain, words_in(options.model_t)))
    teacher = f"_T_{names}{teacher_tag}" if names else ""
    words = [
        f"S_{plain(options.model_s)}{teacher}",
        setting.data.name,
        options.distill,
        *(token(name, options.values[name]) for name in views),
        *(token(letter, canonical(weight)) for letter, weight in weights.items()),
        *(["no_pair_defaults"] if options.no_pair_defaults else []),
    ]
    told = {"model_s", "model_t", "dataset", "distill", "gamma", "alpha", "beta", *views}
    return Title("_".join(words), told)


def probe_title(setting: Setting, path: Path, digest: str) -> Title:
    """'S_resnet8x4_T_..._trial_1_best-1a2b3c4d_to_stl10': folder, which checkpoint, its sha256.

    Of the folder's name no more than LONGEST_SOURCE characters, so that the rest is never cut off.
    """
    run = plain(path.absolute().parent.name)[:LONGEST_SOURCE]
    which = path.stem if path.stem.startswith("ckpt") else path.stem.rpartition("_")[2]
    text = f"{run}_{plain(which)}-{digest[:8]}_to_{setting.data.name}"
    return Title(text, {"model_s", "dataset"})
